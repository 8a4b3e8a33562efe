"""What a paper prints is what arithmetic gives, or the difference is said in words."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from lora_lab.course.papers import BYTES, Claim, claims, discrepancies, gpt3_lora_parameters, load_paper
from lora_lab.lowrank import parameter_count

PAPER = load_paper()


def claim(*words):
    """The one claim whose sentence has all these words."""
    [found] = [claim for claim in claims() if all(word in str(claim) for word in words)]
    return found


def scores(table):
    """(WikiSQL, MultiNLI) of a table for each setup (weights, rank)."""
    return {(row["weights"], row["rank"]): (row["wikisql"], row["multinli"]) for row in PAPER[table]["rows"]}


class TestArithmetic:
    def test_rank_1_on_q_and_v_of_gpt3_trains_4718592_parameters_which_is_0_0027_percent(self):
        assert gpt3_lora_parameters("qv", 1) == 4_718_592 == 96 * 2 * parameter_count(12288, 12288, 1)
        assert f"{gpt3_lora_parameters('qv', 1) / PAPER['gpt3']['parameters']:.4%}" == "0.0027%"

    def test_it_is_what_lora_counts_on_such_a_model(self):
        """Two of the 96 layers, on the meta device, where they take no memory."""
        import torch
        from torch import nn

        from lora_lab.lora import LoRAConfig, attach

        with torch.device("meta"):
            block = {name: nn.Linear(12288, 12288, bias=False) for name in ("q", "k", "v", "o")}
            model = nn.ModuleList([nn.ModuleDict(block), nn.ModuleDict({n: nn.Linear(12288, 12288) for n in block})])
        attach(model, LoRAConfig(rank=1, targets=("q", "v")))
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert 48 * trained == gpt3_lora_parameters("qv", 1)

    def test_rank_8_on_q_and_v_trains_37_7_million(self):
        assert gpt3_lora_parameters("qv", 8) == 37_748_736
        assert claim("appendix D.4", "rank 8 on q and v").agrees

    def test_the_checkpoint_of_35_MB_takes_37_7_and_350_GB_are_350(self):
        assert claim("the weights of GPT-3 in 16 bits").computed == 350
        small = claim("rank 4 on q and v in 16 bits")
        assert (small.written, small.computed) == (35, 37.748736)
        assert not small.agrees
        assert "In units of 2²⁰ bytes it is 36.0" in small.difference
        times = claim("so a checkpoint is smaller by")
        assert (times.written, round(times.computed)) == (10000, 9272)

    def test_25_percent_faster_is_32_6_percent_more_throughput_and_24_6_percent_less_time(self):
        speed = claim("tokens a second")
        assert speed.computed == pytest.approx(32.6, abs=0.05)
        assert "24.6%" in speed.difference

    def test_all_setups_of_table_5_have_as_many_parameters(self):
        assert {gpt3_lora_parameters(row["weights"], row["rank"]) for row in PAPER["table_5"]["rows"]} == {18_874_368}

    def test_the_rivals_are_counted_by_the_papers_own_formulas(self):
        assert claim("264 tokens").agrees
        assert claim("adapters of rank 1:").agrees
        assert claim("adapters of rank 8").agrees
        assert claim("16 tokens in each layer").computed == pytest.approx(96 * 12288 * 16 / 1e6)

    @pytest.mark.parametrize(
        ("weights", "rank", "error", "message"),
        [
            ("", 1, ValueError, "weights must be one or more of q, k, v and o, each once, got ''"),
            ("qq", 1, ValueError, "each once"),
            ("x", 1, ValueError, "weights must be"),
            (("q",), 1, TypeError, "weights must be text like 'qv'"),
            ("qv", 20000, ValueError, "rank must be at most"),
        ],
    )
    def test_bad_arguments_are_refused(self, weights, rank, error, message):
        with pytest.raises(error, match=message):
            gpt3_lora_parameters(weights, rank)


class TestDiscrepancies:
    def test_each_is_named_in_words_and_no_word_is_lost_on_what_agrees(self):
        for one in claims():
            assert bool(one.difference) != one.agrees, str(one)
        assert {one.where for one in discrepancies()} == {
            "appendix D.4",
            "section 7.1 and table 5",
            "table 15",
            "section 5.1 and appendix D.4",
            "section 4.2",
            "section 4.2 and footnote 5",
            "table 4",
            "table 5",
            "table 6",
        }
        assert len(claims()) > len(discrepancies()) > 0

    def test_agreeing_is_a_matter_of_the_printed_digits(self):
        assert Claim("", "", 4.7, 4.749, "").agrees
        assert not Claim("", "", 4.7, 4.751, "").agrees
        assert Claim("", "", 350, 350.4, "").agrees

    def test_the_tables_differ_in_one_score_each_and_nowhere_else(self):
        found = []
        for one, other in itertools.combinations(("table_5", "table_6", "table_15"), 2):
            first, second = scores(one), scores(other)
            for setup in first.keys() & second.keys():
                pairs = zip(first[setup], second[setup], strict=True)
                found += [(one, other, setup, *pair) for pair in pairs if pair[0] != pair[1]]
        assert sorted(found) == [
            ("table_5", "table_6", ("q", 8), 91.0, 90.7),
            ("table_6", "table_15", ("qv", 64), 73.5, 73.6),
        ]

    def test_the_rows_of_table_4_are_explained_by_table_15(self):
        small, large = PAPER["table_4"]["rows"][-2:]
        table = scores("table_15")
        of_size = {setup for setup in table if round(gpt3_lora_parameters(*setup) / 1e6, 1) == 4.7}
        assert of_size == {("v", 2), ("qv", 1)}
        assert (small["wikisql"], small["multinli"]) == table["v", 2] != table["qv", 1]
        assert (large["wikisql"], large["multinli"]) not in table.values()
        assert large["wikisql"] == table["qkvo", 4][0]
        assert large["multinli"] == table["qv", 8][1]

    def test_every_number_that_a_difference_repeats_is_in_the_data_or_computed(self):
        """The sentences quote figures: each is a printed one, or one that a claim computes."""
        derived = {35 / BYTES, 37_748_736 / 2**20, 100 * (1 - 32.5 / 43.1), 91.0 - 90.7}
        known = {f"{one.computed:.1f}" for one in claims()} | {f"{number:.1f}" for number in derived}
        quoted = {(number, str(one)) for one in discrepancies() for number in re.findall(r"\d+\.\d", one.difference)}
        assert len(quoted) > 10
        for number, sentence in quoted:
            assert number in known or number in json.dumps(PAPER), sentence


class TestData:
    def test_table_6_is_whole(self):
        assert set(scores("table_6")) == set(itertools.product(("q", "qv", "qkvo"), (1, 2, 4, 8, 64)))

    def test_rank_1_of_table_6_loses_next_to_nothing_on_two_matrices_and_more_on_one(self):
        table = scores("table_6")
        best = {weights: max(table[weights, rank][0] for rank in (1, 2, 4, 8, 64)) for weights in ("q", "qv", "qkvo")}
        fluctuation = PAPER["table_6"]["fluctuation"]["wikisql"]
        assert best["qv"] - table["qv", 1][0] <= fluctuation
        assert best["qkvo"] == table["qkvo", 1][0]
        assert best["q"] - table["q", 1][0] > 3 * fluctuation

    def test_scores_are_percents_and_every_row_is_of_one_shape(self):
        for name in ("table_4", "table_5", "table_6", "table_15"):
            rows = PAPER[name]["rows"]
            assert len({tuple(row) for row in rows}) == 1
            assert all(50 < row["wikisql"] < 100 and 80 < row["multinli"] < 100 for row in rows)
        assert [len(PAPER[f"table_{n}"]["rows"]) for n in (4, 5, 6, 15)] == [8, 7, 15, 10]

    def test_an_unknown_paper_is_an_error_that_lists_those_there_are(self):
        with pytest.raises(FileNotFoundError, match=r"no stored paper 'hu2022' in .*; there are: hu2021"):
            load_paper("hu2022")

    def test_reading_it_loads_no_torch(self):
        code = "import sys; from lora_lab.course.papers import claims; claims(); print('torch' in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
