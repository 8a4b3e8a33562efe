"""The cells of a lesson that call ``course.vary``, and what they need of the cells above them."""

import ast
import dis
import types

import nbformat

from lora_lab.course.notebooks import code_cells, notebooks

LESSONS = [path for path in notebooks() if path.stem[:2] in ("01", "02", "03", "04", "05")]


def sliders(path):
    """Give the code cells of a lesson, and the places of those among them that call ``course.vary``."""
    cells = code_cells(nbformat.read(path, as_version=4))
    return cells, [place for place, cell in enumerate(cells) if "course.vary(" in cell.source]


def needed(cells, place):
    """Give the places of the cells that a cell needs: those that assign what it uses, and those that they need."""
    wanted, places = used(tree(cells[place])), [place]
    for above in range(place - 1, -1, -1):
        if assigned(tree(cells[above])) & wanted:
            wanted |= used(tree(cells[above]))
            places.append(above)
    return places[::-1]


def used(code):
    """Give the names that a piece of code reads from outside of its functions, there or in them."""
    names, waiting = set(), [compile(code, "cell", "exec")]
    while waiting:
        part = waiting.pop()
        names |= {one.argval for one in dis.get_instructions(part) if one.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
        waiting += [constant for constant in part.co_consts if isinstance(constant, types.CodeType)]
    return names


def assigned(code):
    """Give the names that a cell gives a value outside of its functions, or changes in place."""
    names, nodes = set(), list(code.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            nodes += ast.iter_child_nodes(node)
    return names


def read_when_drawing(cells, places, name):
    """Give the names that a function of these cells reads when it is called, through all functions that it calls."""
    functions = {
        node.name: node for place in places for node in tree(cells[place]).body if isinstance(node, ast.FunctionDef)
    }
    found, waiting = set(), [name]
    while waiting:
        names = used(ast.Module([functions[waiting.pop()]], []))
        waiting += sorted((names & functions.keys()) - found)
        found |= names
    return found


def drawer(cell):
    """Give the name of the function that a cell hands to ``course.vary``."""
    calls = [node for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
    return next(call.args[0].id for call in calls if ast.unparse(call.func) == "course.vary")


def tree(cell):
    """Give a cell as a syntax tree; a cell with commands of IPython, which no slider needs, as an empty one."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.parse("")
