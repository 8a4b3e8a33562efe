"""The small databases that the questions are about.

A domain is one table, or a parent and a child: every row of the child belongs to a row of the parent. Names are plain
English words, so that a question can call a column by its name. None is a keyword of SQL, and no two tables share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DOMAINS", "Column", "Domain", "Table"]


@dataclass(frozen=True)
class Column:
    """A column: its name, its role, and the values it may hold.

    Attributes:
        name: as in SQL.
        role: "label" (what a row is called), "text" (a category), "number", or "key" (of the table, or of its parent).
        values: what it may hold; for numbers an even grid in ascending order.
        aggregates: the functions that make sense on it: no sum of years, no average of categories.
        words: what a question calls it.
    """

    name: str
    role: str
    values: tuple[str | int | float, ...] = ()
    aggregates: tuple[str, ...] = ()
    words: str = ""

    @property
    def type(self) -> str:
        """Give the SQL type."""
        if self.role in ("label", "text"):
            return "text"
        return "real" if any(isinstance(value, float) for value in self.values) else "int"


@dataclass(frozen=True)
class Table:
    """A table: its name, the plural a question uses for its rows, its columns, and the name of its parent, if any."""

    name: str
    plural: str
    columns: tuple[Column, ...]
    parent: str | None = None

    def of_role(self, role: str) -> list[Column]:
        """Give the columns of one role."""
        return [column for column in self.columns if column.role == role]

    @property
    def label(self) -> Column:
        """Give the column that says what a row is called."""
        return self.of_role("label")[0]

    @property
    def schema(self) -> str:
        """Give the CREATE TABLE statement: what the model reads is what the database is made with."""
        columns = [f"{column.name} {column.type}" for column in self.columns]
        if self.columns[0].role == "key":
            columns[0] += " primary key"
        if self.parent:
            columns[-1] += f" references {self.parent}(id)"
        return f"CREATE TABLE {self.name} ({', '.join(columns)})"


Domain = tuple[Table, ...]  # one table, or the parent and then the child


def _text(name: str, values: str, role: str = "text") -> Column:
    """Give a column of categories."""
    return Column(name, role, tuple(values.split(", ")), words=name.replace("_", " "))


def _label(values: str, name: str = "name") -> Column:
    """Give the column that says what a row is called."""
    return _text(name, values, "label")


def _number(name: str, low: float, high: float, step: float = 1, *, adds: bool = True, words: str = "") -> Column:
    """Give a column of numbers low, low + step, ... up to high; `adds` says that a sum of them makes sense."""
    grid = [low + step * i for i in range(round((high - low) / step) + 1)]
    values = tuple(round(value, 1) if isinstance(step, float) else int(value) for value in grid)
    return Column(
        name, "number", values, ("AVG", "SUM", "MAX", "MIN") if adds else ("AVG", "MAX", "MIN"), words or name
    )


def _count(name: str, low: int, high: int, step: int = 1) -> Column:
    """Give a column that counts something: a question about `pages` says "number of pages"."""
    return _number(name, low, high, step, words=f"number of {name}")


def _year(name: str, low: int, high: int) -> Column:
    """Give a column of years, which have an earliest and a latest and no meaningful average."""
    words = "year" if name == "year" else f"year {name}"
    return Column(name, "number", tuple(range(low, high + 1)), ("MAX", "MIN"), words)


def _one(name: str, plural: str, *columns: Column) -> Domain:
    """Give a domain of one table."""
    return (Table(name, plural, columns),)


def _two(parent: tuple[str, str, Sequence[Column]], child: tuple[str, str, Sequence[Column]]) -> Domain:
    """Give a domain of a parent and its child; the keys are added."""
    upper = Table(parent[0], parent[1], (Column("id", "key"), *parent[2]))
    lower = Table(child[0], child[1], (*child[2], Column(f"{upper.name}_id", "key")), upper.name)
    return upper, lower


_CITIES = "Paris, London, Rome, Berlin, Madrid, Vienna, Oslo, Lisbon"
_COUNTRIES = "France, Spain, Italy, Japan, Brazil, Canada, India, Norway"
_PEOPLE = "Anna, Ben, Clara, David, Emma, Frank, Grace, Henry, Julia, Leo, Maria, Oscar"
_COLORS = "red, blue, green, black, white, silver"
_PLACES = "Aurora, Bellevue, Central, Eden, Fairview, Grand, Harmony, Lakeside, Meridian, Summit"
_TITLES = "Dawn, Echo, Fire, Harbor, Island, Memory, River, Shadow, Storm, Winter"

_SINGLE: tuple[Domain, ...] = (
    _one(
        "hotel",
        "hotels",
        _label(_PLACES),
        _text("city", _CITIES),
        _count("rooms", 20, 300, 10),
        _number("price", 40, 300, 5),
    ),
    _one(
        "movie",
        "movies",
        _label(_TITLES, "title"),
        _text("genre", "comedy, drama, horror, action, romance"),
        _text("language", "English, French, Hindi, Korean, Spanish"),
        _year("year", 1960, 2020),
        _count("minutes", 70, 200),
    ),
    _one(
        "car",
        "cars",
        _label("Comet, Falcon, Lynx, Orion, Panther, Rapid, Swift, Vega", "model"),
        _text("color", _COLORS),
        _text("fuel", "diesel, electric, hybrid, petrol"),
        _year("year", 1990, 2024),
        _number("price", 4000, 60000, 500),
    ),
    _one(
        "mountain",
        "mountains",
        _label("Alba, Bruno, Corvo, Dent, Ember, Frost, Gale, Horn, Iron, Jade"),
        _text("country", _COUNTRIES),
        _number("height", 1000, 8000, 50, adds=False),
        _year("climbed", 1850, 1980),
    ),
    _one(
        "phone",
        "phones",
        _label("Alpha, Beta, Delta, Gamma, Nova, Pixel, Prime, Sigma", "model"),
        _text("brand", "Acorn, Orbit, Quartz, Titan, Vertex"),
        _text("color", _COLORS),
        _number("weight", 120, 260, 2, adds=False),
        _number("price", 100, 1500, 20),
    ),
    _one(
        "dog",
        "dogs",
        _label("Bella, Buddy, Coco, Daisy, Lucky, Max, Molly, Rex, Rocky"),
        _text("breed", "beagle, boxer, collie, husky, poodle"),
        _number("weight", 3, 60),
        _number("height", 20, 90, adds=False),
    ),
    _one(
        "recipe",
        "recipes",
        _label("bread, cake, curry, pie, pizza, salad, soup, stew, toast", "title"),
        _text("cuisine", "Chinese, French, Greek, Indian, Mexican, Thai"),
        _count("minutes", 5, 180, 5),
        _count("calories", 100, 1200, 20),
    ),
    _one(
        "museum",
        "museums",
        _label(_PLACES),
        _text("city", _CITIES),
        _text("topic", "art, history, music, nature, science"),
        _year("founded", 1750, 2010),
        _count("visitors", 1000, 90000, 1000),
    ),
    _one(
        "painting",
        "paintings",
        _label(_TITLES, "title"),
        _text("artist", "Bellini, Duval, Hartmann, Moreau, Rossi, Vogel"),
        _text("style", "abstract, baroque, cubist, modern, realist"),
        _year("year", 1500, 2000),
        _number("width", 20, 300, 2, adds=False),
    ),
    _one(
        "tree",
        "trees",
        _label("ash, beech, birch, cedar, elm, maple, oak, pine", "species"),
        _text("park", "Castle, Garden, Hill, Lake, Market, River"),
        _number("age", 5, 300),
        _number("height", 2, 60, adds=False),
    ),
    _one(
        "game",
        "games",
        _label(_TITLES, "title"),
        _text("genre", "puzzle, racing, sport, strategy, adventure"),
        _text("platform", "console, desktop, mobile, web"),
        _number("price", 5, 90),
        _count("sales", 100, 9000, 100),
    ),
    _one(
        "bridge",
        "bridges",
        _label(_PLACES),
        _text("city", _CITIES),
        _text("material", "concrete, iron, steel, stone, wood"),
        _number("length", 20, 2000, 10),
        _year("built", 1800, 2020),
    ),
    _one(
        "job",
        "jobs",
        _label("analyst, baker, cook, driver, engineer, nurse, painter, pilot, teacher", "title"),
        _text("company", "Apex, Bolt, Cobalt, Dyna, Evergreen"),
        _text("city", _CITIES),
        _number("salary", 20000, 90000, 1000),
        _count("hours", 10, 60),
    ),
    _one(
        "ship",
        "ships",
        _label(_PLACES),
        _text("flag", "Greece, Panama, Malta, Liberia, Cyprus"),
        _text("type", "cargo, cruise, ferry, fishing, tanker"),
        _number("length", 20, 400, 2, adds=False),
        _number("crew", 5, 90),
        _year("built", 1970, 2022),
    ),
    _one(
        "flower",
        "flowers",
        _label("aster, daisy, iris, lily, orchid, poppy, rose, tulip"),
        _text("color", _COLORS),
        _text("season", "autumn, spring, summer, winter"),
        _number("height", 5, 120, adds=False),
        _number("price", 1, 40),
    ),
    _one(
        "wine",
        "wines",
        _label(_TITLES),
        _text("grape", "Malbec, Merlot, Riesling, Shiraz"),
        _text("country", _COUNTRIES),
        _year("year", 1970, 2022),
        _number("rating", 1.0, 5.0, 0.1, adds=False),
        _number("price", 4, 120),
    ),
)

_DOUBLE: tuple[Domain, ...] = (
    _two(
        ("author", "authors", [_label(_PEOPLE), _text("country", _COUNTRIES), _year("born", 1900, 1995)]),
        (
            "book",
            "books",
            [
                _label(_TITLES, "title"),
                _text("genre", "crime, fantasy, history, poetry, travel"),
                _count("pages", 60, 900, 5),
                _number("price", 4, 60),
            ],
        ),
    ),
    _two(
        (
            "team",
            "teams",
            [
                _label("Bears, Eagles, Lions, Sharks, Tigers, Wolves"),
                _text("city", _CITIES),
                _year("founded", 1880, 2000),
            ],
        ),
        (
            "player",
            "players",
            [
                _label(_PEOPLE),
                _text("position", "defender, forward, goalkeeper, midfielder"),
                _count("goals", 0, 60),
                _number("age", 16, 40, adds=False),
            ],
        ),
    ),
    _two(
        (
            "department",
            "departments",
            [
                _label("Design, Finance, Legal, Research, Sales, Support"),
                _text("city", _CITIES),
                _number("budget", 10000, 900000, 10000),
            ],
        ),
        (
            "employee",
            "employees",
            [
                _label(_PEOPLE),
                _text("role", "assistant, director, engineer, manager"),
                _number("salary", 20000, 120000, 1000),
                _number("age", 20, 65, adds=False),
            ],
        ),
    ),
    _two(
        ("customer", "customers", [_label(_PEOPLE), _text("city", _CITIES), _number("age", 18, 90, adds=False)]),
        (
            "purchase",
            "purchases",
            [
                _label("book, chair, desk, lamp, pen, phone, shirt, watch", "product"),
                _text("payment", "card, cash, cheque, transfer"),
                _number("amount", 5, 900, 5),
                _number("quantity", 1, 40),
            ],
        ),
    ),
    _two(
        (
            "airline",
            "airlines",
            [_label("Aero, Breeze, Cirrus, Jetway, Skyline"), _text("country", _COUNTRIES), _count("planes", 5, 200)],
        ),
        (
            "flight",
            "flights",
            [
                _label("AB12, CD34, EF56, GH78, JK90, LM21, NP43", "code"),
                _text("destination", "Athens, Boston, Cairo, Delhi, Lima, Tokyo"),
                _number("distance", 200, 9000, 100),
                _number("price", 40, 900, 5),
            ],
        ),
    ),
    _two(
        ("school", "schools", [_label(_PLACES), _text("city", _CITIES), _year("founded", 1850, 2010)]),
        (
            "student",
            "students",
            [
                _label(_PEOPLE),
                _text("subject", "art, biology, history, math, physics"),
                _number("grade", 1, 100, adds=False),
                _count("absences", 0, 40),
            ],
        ),
    ),
    _two(
        (
            "restaurant",
            "restaurants",
            [_label(_PLACES), _text("city", _CITIES), _number("rating", 1.0, 5.0, 0.1, adds=False)],
        ),
        (
            "dish",
            "dishes",
            [
                _label("burger, curry, lasagna, omelet, paella, ramen, risotto, taco"),
                _text("course", "dessert, main, side, starter"),
                _number("price", 3, 60),
                _count("calories", 100, 1500, 20),
            ],
        ),
    ),
    _two(
        (
            "album",
            "albums",
            [_label(_TITLES, "title"), _text("genre", "blues, folk, jazz, pop, rock"), _year("year", 1960, 2023)],
        ),
        (
            "track",
            "tracks",
            [
                _label("Anthem, Ballad, Dance, Hymn, Lullaby, March, Serenade, Waltz", "title"),
                _text("key_signature", "A minor, C major, D minor, G major"),
                _count("seconds", 60, 600, 5),
                _count("plays", 100, 90000, 100),
            ],
        ),
    ),
    _two(
        (
            "doctor",
            "doctors",
            [
                _label(_PEOPLE),
                _text("specialty", "cardiology, neurology, pediatrics, surgery"),
                _number("salary", 60000, 300000, 5000),
            ],
        ),
        (
            "patient",
            "patients",
            [
                _label(_PEOPLE),
                _text("city", _CITIES),
                _number("age", 1, 95, adds=False),
                _number("weight", 20, 130, adds=False),
            ],
        ),
    ),
    _two(
        (
            "farm",
            "farms",
            [_label(_PLACES), _text("region", "coast, hills, north, plains, south"), _number("area", 10, 900, 5)],
        ),
        (
            "animal",
            "animals",
            [
                _label("Bella, Clover, Daisy, Ginger, Misty, Pepper, Rosie"),
                _text("species", "cow, goat, horse, pig, sheep"),
                _number("weight", 10, 900, 5),
                _number("age", 1, 30, adds=False),
            ],
        ),
    ),
    _two(
        ("gym", "gyms", [_label(_PLACES), _text("city", _CITIES), _number("fee", 10, 120)]),
        (
            "member",
            "members",
            [
                _label(_PEOPLE),
                _text("sport", "boxing, cycling, rowing, swimming, yoga"),
                _count("visits", 1, 200),
                _year("joined", 1990, 2024),
            ],
        ),
    ),
    _two(
        (
            "company",
            "companies",
            [
                _label("Apex, Bolt, Cobalt, Dyna, Evergreen, Fusion"),
                _text("country", _COUNTRIES),
                _number("revenue", 1, 900),
            ],
        ),
        (
            "product",
            "products",
            [
                _label("bike, camera, drone, heater, kettle, mixer, radio, tent"),
                _text("category", "garden, home, office, outdoor, toys"),
                _number("price", 5, 500, 5),
                _number("stock", 0, 300),
            ],
        ),
    ),
    _two(
        ("port", "ports", [_label(_CITIES), _text("country", _COUNTRIES), _number("depth", 5, 60, adds=False)]),
        (
            "boat",
            "boats",
            [
                _label(_PLACES),
                _text("type", "canoe, ferry, sailboat, tug, yacht"),
                _number("length", 3, 80, adds=False),
                _number("price", 1000, 90000, 1000),
            ],
        ),
    ),
    _two(
        (
            "bank",
            "banks",
            [_label("Atlas, Crown, Harbor, Liberty, Union"), _text("city", _CITIES), _year("founded", 1800, 2015)],
        ),
        (
            "account",
            "accounts",
            [
                _label(_PEOPLE, "owner"),
                _text("currency", "dollar, euro, pound, yen"),
                _number("balance", 0, 9000, 50),
                _year("opened", 1980, 2024),
            ],
        ),
    ),
    _two(
        (
            "teacher",
            "teachers",
            [
                _label(_PEOPLE),
                _text("subject", "art, biology, history, math, music"),
                _number("age", 22, 68, adds=False),
            ],
        ),
        (
            "lesson",
            "lessons",
            [
                _label("basics, drawing, essay, experiment, practice, review, test", "topic"),
                _text("room", "attic, hall, lab, library, studio"),
                _count("minutes", 20, 180, 5),
                _count("seats", 5, 60),
            ],
        ),
    ),
    _two(
        ("festival", "festivals", [_label(_PLACES), _text("country", _COUNTRIES), _count("days", 1, 30)]),
        (
            "concert",
            "concerts",
            [
                _label("Comets, Drifters, Foxes, Lanterns, Ravens, Sparrows", "band"),
                _text("stage", "forest, garden, main, river, tent"),
                _count("tickets", 100, 9000, 100),
                _number("price", 5, 150),
            ],
        ),
    ),
)

DOMAINS: tuple[Domain, ...] = _SINGLE + _DOUBLE
