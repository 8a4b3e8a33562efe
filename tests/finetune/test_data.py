"""A file's examples are read as they stand, and every line that is none is named with its number and the reason."""

import csv
import hashlib
import io
import json

import pytest

from lora_lab.finetune.data import DataError, Record, Turn, duplicates, hold_out, read_data

PAIR = '{"prompt": "Say a", "completion": "a"}'
CHAT = '{"messages": [{"role": "user", "content": "Say b"}, {"role": "assistant", "content": "b"}]}'


def written(folder, content: str | bytes, name: str = "mine.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(folder, content: str | bytes, name: str = "mine.jsonl") -> dict[int, str]:
    with pytest.raises(DataError) as caught:
        read_data(written(folder, content, name))
    assert caught.value.name == name
    return dict(caught.value.bad)


# --- JSONL


def test_both_forms_are_read_with_their_lines_and_the_hash_of_the_bytes(tmp_path):
    content = f"{PAIR}\n\n  \n{CHAT}\n".encode()
    file = read_data(written(tmp_path, content))
    assert file.records == (Record(1, "Say a", "a"), Record(4, (Turn("user", "Say b"),), "b"))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert (file.name, file.ignored) == ("mine.jsonl", {})


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("last", [True, False], ids=["end at the end", "no end at the end"])
def test_marks_and_line_ends_change_nothing(mark, end, last, tmp_path):
    lines = [PAIR.encode(), b"", CHAT.encode()]
    file = read_data(written(tmp_path, mark + end.join(lines) + (end if last else b"")))
    assert file.records == (Record(1, "Say a", "a"), Record(3, (Turn("user", "Say b"),), "b"))


def test_texts_are_kept_to_the_letter(tmp_path):
    text = " a\u2028b\x85c\r\n\td é 🙂 "  # line separators that are no line ends of a file
    file = read_data(written(tmp_path, json.dumps({"prompt": text, "completion": text}, ensure_ascii=False)))
    assert file.records == (Record(1, text, text),)


def test_a_conversation_is_its_last_answer_and_all_before_it(tmp_path):
    turns = [("system", "Be brief."), ("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")]
    messages = [{"role": role, "content": content} for role, content in turns]
    pair = {"prompt": messages[:4], "completion": messages[4:]}  # the form of TRL
    file = read_data(written(tmp_path, f"{json.dumps({'messages': messages})}\n{json.dumps(pair)}"))
    expected = tuple(Turn(*turn) for turn in turns[:4])
    assert file.records == (Record(1, expected, "two"), Record(2, expected, "two"))


def test_keys_that_are_not_read_are_counted(tmp_path):
    lines = ['{"prompt": "a", "completion": "b", "id": 1}', '{"id": 2, "tag": "x", "prompt": "c", "completion": "d"}']
    assert read_data(written(tmp_path, "\n".join(lines))).ignored == {"id": 2, "tag": 1}


BAD = {
    '{"prompt": "a"}': "has no completion; its keys are 'prompt'",
    '{"promt": "a", "completion": "b"}': "has no prompt; its keys are 'promt', 'completion'",
    '{"prompt": "a", "completion": " \\n"}': "completion is empty",
    '{"prompt": "", "completion": "b"}': "prompt is empty",
    '{"prompt": 3, "completion": "b"}': "prompt is 3, not a text",
    '{"prompt": "a", "completion": null}': "completion is null, not a text",
    '{"prompt": "a", "completion": ["b"]}': "completion is [\"b\"], not a text",
    '{"prompt": "a" "completion": "b"}': "not JSON: Expecting ',' delimiter at character 16",
    '{"prompt": "a", "prompt": "b", "completion": "c"}': "the key 'prompt' stands twice",
    '{"instruction": "a", "output": "b"}': "takes the keys prompt and completion, or messages; has 'instruction', 'ou",
    "{}": "takes the keys prompt and completion, or messages; has none",
    '["a", "b"]': "not an object in braces { }",
    '"a"': "not an object in braces { }",
    "[" * 100_000: "not JSON that can be read: maximum recursion depth exceeded",
    '{"prompt": "a", "completion": "b", "id": ' + "9" * 5000 + "}": "not JSON that can be read: Exceeds the limit",
    '{"prompt": "\\ud83d", "completion": "b"}': "prompt has half of a character",
    '{"messages": "a"}': "messages is not a list of messages",
    '{"messages": []}': "messages is not a list of messages",
    '{"messages": ["a"]}': "message 1 of messages is not an object with role and content",
    '{"messages": [{"from": "human", "value": "a"}]}': "message 1 of messages is not an object with role and content",
    '{"messages": [{"role": "human", "content": "a"}]}': "has the role 'human'; takes system, user, assistant",
    '{"messages": [{"role": "user", "content": "a"}]}': "the last turn, and it alone, must be the assistant's answer",
    '{"messages": [{"role": "assistant", "content": "a"}]}': "there is nothing before the assistant's answer",
    '{"messages": [{"role": "user", "content": ""}]}': "the content of message 1 is empty",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "the content of message 1 is [{",
    '{"messages": [{"role": "user", "content": "a", "name": "Z"}]}': "message 1 of messages has 'name'; takes role and",
    '{"messages": [], "prompt": "a"}': "has both messages and prompt or completion",
    '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}': "must be the",
    '{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}': "prompt is [{",
}  # fmt: skip


def test_each_kind_of_bad_line_is_named_with_its_number_among_good_ones(tmp_path):
    lines, expected = [], {}
    for bad, reason in BAD.items():
        lines += [PAIR, "", bad]
        expected[len(lines)] = reason
    found = refused(tmp_path, "\n".join(lines))
    assert found.keys() == expected.keys()
    for line, reason in expected.items():
        assert reason in found[line], line


def test_a_line_that_is_not_utf8_is_named_and_not_the_whole_file(tmp_path):
    found = refused(tmp_path, PAIR.encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n' + PAIR.encode())
    assert found == {2: "not UTF-8: byte 16 is 0xe9"}


def test_the_message_shows_twenty_lines_and_counts_the_rest(tmp_path):
    with pytest.raises(DataError) as caught:
        read_data(written(tmp_path, "nothing\n" * 35))
    lines = str(caught.value).splitlines()
    assert lines[0] == "mine.jsonl: 35 of its lines cannot be used; correct or delete them"
    assert lines[1] == "  line 1: not JSON: Expecting value at character 1"
    assert lines[20:] == ["  line 20: not JSON: Expecting value at character 1", "  and 15 more"]
    assert len(caught.value.bad) == 35


@pytest.mark.parametrize("content", ["", "\n \r\n\n", "\ufeff"])
def test_a_file_without_an_example_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"mine\.jsonl: there is no example in it"):
        read_data(written(tmp_path, content))


def test_a_json_list_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is one JSON list; write each of its objects on a line of its own"):
        read_data(written(tmp_path, f"[{PAIR},\n {CHAT}]", "mine.json"))
    assert set(refused(tmp_path, f'["a"]\n{PAIR}')) == {1}
    with pytest.raises(ValueError, match=r"mine\.parquet: takes a file whose name ends in \.jsonl or \.csv"):
        read_data(written(tmp_path, PAIR, "mine.parquet"))
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        read_data(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv"])
def test_a_file_in_utf16_is_refused_as_a_whole(name, encoding, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}: is in UTF-16 .*; save it as UTF-8"):
        read_data(written(tmp_path, ("\ufeff" + PAIR).encode(encoding), name))


# --- CSV


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_table_is_read_as_the_csv_module_wrote_it(end, tmp_path):
    rows = [("a, b", 'c "d"'), (f"two{end}lines", "x"), ("é", f"three{end}{end}lines"), ("last", "row")]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([("completion", "prompt"), *rows])
    file = read_data(written(tmp_path, "\ufeff" + text.getvalue(), "mine.csv"))
    assert [(record.answer, record.prompt) for record in file.records] == rows
    assert [record.line for record in file.records] == [2, 3, 5, 8]


def test_blank_lines_long_fields_and_other_columns_are_read_past(tmp_path):
    long = "x" * 200_000  # the csv module's own limit is 131,072
    limit = csv.field_size_limit()
    file = read_data(written(tmp_path, f"id, prompt ,completion\n\n1,a,b\n\n2,{long},c\n", "mine.csv"))
    assert file.records == (Record(3, "a", "b"), Record(5, long, "c"))
    assert file.ignored == {"id": 2}
    assert csv.field_size_limit() == limit


def test_bad_rows_are_named_by_the_line_they_begin_on(tmp_path):
    rows = [
        b"prompt,completion", b"good,row", b'"two', b'lines",', b"one", b"a,b,c", b'"a"b,c', b"caf\xe9,b",
        b'"two', b'lines\xff",b', b"good,row", b'"never closed,b', b"good,row",
    ]  # fmt: skip
    assert refused(tmp_path, b"\n".join(rows), "mine.csv") == {
        3: "completion is empty",
        5: "1 field, and the header has 2",
        6: "3 fields, and the header has 2",
        7: "not CSV: ',' expected after '\"'",
        8: "not UTF-8: byte 4 is 0xe9",
        10: "not UTF-8: byte 6 is 0xff",
        12: "a quote opens here and is never closed",
    }


@pytest.mark.parametrize("header", ["prompt;completion", "prompt", "prompt,completion,prompt", "question,answer"])
def test_a_table_without_its_columns_is_refused(header, tmp_path):
    with pytest.raises(ValueError, match="it takes the names of the columns, prompt and completion among them"):
        read_data(written(tmp_path, f"{header}\na,b\n", "mine.csv"))


def test_a_header_that_cannot_be_read_is_a_bad_line(tmp_path):
    assert refused(tmp_path, b"prompt,completi\xf6n\na,b\n", "mine.csv") == {1: "not UTF-8: byte 16 is 0xf6"}
    assert refused(tmp_path, b'"prompt,completion\na,b\n', "mine.csv") == {1: "a quote opens here and is never closed"}
    for content in (b"", b"\n\n", b"prompt,completion\n"):
        with pytest.raises(ValueError, match=r"mine\.csv: there is no example in it"):
            read_data(written(tmp_path, content, "mine.csv"))


# --- duplicates and the split


def records(count: int, copies: int = 1) -> list[Record]:
    return [Record(i + 1, f"Say {i // copies}", str(i // copies)) for i in range(count)]


def test_a_copy_is_the_same_text_in_either_form(tmp_path):
    chat = CHAT.replace("Say b", "Say a").replace('"b"', '"a"')
    file = read_data(written(tmp_path, f"{PAIR}\n{CHAT}\n{chat}\n{PAIR}\n"))
    assert duplicates(file.records) == [(1, 3, 4)]


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (7, 7), (0.25, 10), (0.001, 1), (39, 39)])
def test_as_many_are_held_out_as_asked(size, expected):
    assert sum(hold_out(records(40), size)) == expected


def test_the_split_does_not_depend_on_the_order_and_grows_without_changing_sides():
    every = records(40)
    held = {record.prompt for record, out in zip(every, hold_out(every, 10), strict=True) if out}
    turned = every[::-1]
    assert {record.prompt for record, out in zip(turned, hold_out(turned, 10), strict=True) if out} == held
    more = {record.prompt for record, out in zip(every, hold_out(every, 15), strict=True) if out}
    assert held < more
    assert held != {record.prompt for record in every[:10]}


def test_copies_are_all_on_one_side():
    every = records(40, copies=4)
    held = hold_out(every, 5)
    assert sum(held) == 8
    for start in range(0, 40, 4):
        assert len(set(held[start : start + 4])) == 1


@pytest.mark.parametrize("size", [-1, 1.0, 1.5, -0.5, 0.0, True, float("nan")])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match=r"validation: got .*, takes a whole number, or a share above 0 and below 1"):
        hold_out(records(5), size)


@pytest.mark.parametrize(("count", "copies", "size"), [(1, 1, 0.1), (5, 1, 5), (5, 1, 0.99), (6, 6, 1)])
def test_a_split_that_leaves_nothing_to_learn_from_is_refused(count, copies, size):
    with pytest.raises(ValueError, match="leaves none to learn from; hold out fewer, or 0"):
        hold_out(records(count, copies), size)
