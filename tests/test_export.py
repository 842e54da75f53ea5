"""Exports: what was written is read, and a file that differs in anything is refused."""

import copy
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_ledgers import charge, filled, forged, lines_of, share

from common.errors import LedgerError
from common.ledger import Ledger
from common.transparency import canonical, export
from common.transparency.merkle import leaf_hash, root_of
from common.transparency.notes import Checkpoint, Signer
from common.transparency.notes import verify as verify_note

ENTRIES = 14
# The lines of the sample ledger: a header, entries, and checkpoints after 2, 3, 6, 8, 9, 10, 11, 13 and 14 of them.
SIGNED = (2, 3, 6, 8, 9, 10, 11, 13, 14)
KINDS = ["header"]
for _size in range(1, ENTRIES + 1):
    KINDS += [f"entry {_size - 1}"] + ["checkpoint"] * (_size in SIGNED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the sample ledger and its export."""
    made = tmp_path_factory.mktemp("export")
    filled(made / "a.ledger").close()
    export.write(made / "a.ledger", made / "a.export")
    return made


@pytest.fixture
def data(folder) -> bytes:
    """The export's bytes."""
    return (folder / "a.export").read_bytes()


@pytest.fixture
def lines(data) -> list[bytes]:
    """The export's lines."""
    return data.splitlines(keepends=True)


@pytest.fixture
def signer(folder) -> Signer:
    """The ledger's own signer: a forger who has the key, or a newer version."""
    name = export.read(folder / "a.export").key.name
    return Signer.from_pem(name, (folder / "a.ledger.key").read_bytes())


def refusal(folder, content):
    """Why an export is refused; None if it is not."""
    path = folder / "other.export"
    path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
    try:
        export.read(path)
    except LedgerError as error:
        return str(error)
    return None


def values_in(value, path=()):
    """Every place inside JSON values that holds a text or a number."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from values_in(item, (*path, key))
    else:
        yield path


def changed(value):
    """Another text or number of the same kind."""
    if isinstance(value, int):
        return value + 1
    last = value[-1:] or "x"
    return value[:-1] + ("0" if last != "0" else "1")


def with_another(line, path):
    """A line with another value in one place, in canonical form again."""
    value = json.loads(line)
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = changed(inside[path[-1]])
    return canonical.dumps(value) + b"\n"


def test_an_export_reads_as_the_ledger_that_it_is_of(folder):
    """Entries, hashes, checkpoint and books are those of the file and of the opened ledger."""
    exported, direct = export.read(folder / "a.export"), export.read(folder / "a.ledger")
    with closing(Ledger(folder / "a.ledger")) as ledger:
        assert vars(exported.books) == vars(direct.books) == vars(ledger.books)
        assert exported.note == direct.note == ledger.checkpoint
        assert exported.key == direct.key == ledger.key
    assert exported.entries == direct.entries
    assert len(exported.entries) == ENTRIES
    assert exported.leaves == direct.leaves
    assert exported.checkpoint == verify_note(exported.note, exported.key)
    assert exported.checkpoint.root == root_of(exported.leaves)


def test_an_export_holds_every_entry_and_every_checkpoint(data, lines):
    """One line each, in order, every one in canonical form."""
    values = [json.loads(line) for line in lines]
    assert values[0].keys() == {"checkpoint", "format", "key"}
    found = ["entry" if "entry" in line else "checkpoint" for line in values[1:]]
    assert found == [kind.split()[0] for kind in KINDS[1:]]
    assert all(canonical.dumps(value) + b"\n" == line for value, line in zip(values, lines, strict=True))
    for line in values[1:]:
        if "entry" in line:
            assert line["leaf"] == leaf_hash(canonical.dumps(line["entry"])).hex()


def test_exporting_again_gives_the_same_bytes(folder, data, tmp_path):
    """The same ledger has one export."""
    export.write(folder / "a.ledger", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data


def test_reading_needs_no_key_and_writes_nothing(folder, tmp_path):
    """A copy of the bare file is enough, and stays as it is."""
    copied = tmp_path / "copy"
    shutil.copy(folder / "a.ledger", copied)
    before = copied.read_bytes()
    assert export.read(copied).books.size == ENTRIES
    assert copied.read_bytes() == before
    assert list(tmp_path.iterdir()) == [copied]  # it may lie on a medium that cannot be written


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_any_other_value_in_any_field_is_refused(folder, lines, number):
    """Each text and number of each line; a changed entry is named."""
    for path in values_in(json.loads(lines[number])):
        other = [*lines[:number], with_another(lines[number], path), *lines[number + 1 :]]
        why = refusal(folder, other)
        assert why is not None, path
        assert "not whole" in why or path == ("format",), path
        if KINDS[number].startswith("entry"):
            assert f"not whole: {KINDS[number]}: " in why, path


@pytest.mark.parametrize("number", [n for n, kind in enumerate(KINDS) if kind.startswith("entry")])
def test_another_entry_with_its_own_hash_is_refused_by_the_root(folder, lines, number):
    """Who changes an entry and its hash has changed the root, which is signed, if no rule was broken before."""
    for path in values_in(json.loads(lines[number])["entry"], ("entry",)):
        value = json.loads(with_another(lines[number], path))
        value["leaf"] = leaf_hash(canonical.dumps(value["entry"])).hex()
        other = [*lines[:number], canonical.dumps(value) + b"\n", *lines[number + 1 :]]
        assert refusal(folder, other) is not None, path


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0), byte=st.integers(0, 255))
def test_any_other_byte_is_refused(folder, position, byte):
    """Wherever it is; inside an entry, the entry is named."""
    data = (folder / "a.export").read_bytes()
    place = position % len(data)
    byte ^= data[place] == byte
    why = refusal(folder, data[:place] + bytes([byte]) + data[place + 1 :])
    assert why is not None
    number, start = data[:place].count(b"\n"), data.rfind(b"\n", 0, place) + 1
    is_inside = start + len(b'{"entry":') <= place < data.index(b"\n", place) - len(b',"leaf":""}') - 64
    if KINDS[number].startswith("entry") and is_inside:
        assert f"not whole: {KINDS[number]}: " in why


def test_a_flipped_bit_in_the_last_signature_is_refused(folder, lines):
    """Byte for byte: every character of the last checkpoint, which is also the header's."""
    for number in (0, len(lines) - 1):
        line = lines[number]
        for place in range(len(line)):
            other = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
            assert refusal(folder, [*lines[:number], other, *lines[number + 1 :]]) is not None, (number, place)


@pytest.mark.parametrize("count", range(len(KINDS)))
def test_an_export_that_was_cut_off_is_refused(folder, lines, count):
    """At the end of every line, and in the middle of it."""
    start, line = b"".join(lines[:count]), lines[count]
    for rest in (b"", line[: len(line) // 2], line[:-1]):
        assert refusal(folder, start + rest) is not None


@pytest.mark.parametrize("number", range(len(KINDS) - 1))
def test_swapped_lines_are_refused(folder, lines, number):
    """Any two neighbours."""
    lines[number : number + 2] = reversed(lines[number : number + 2])
    assert refusal(folder, lines) is not None


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_a_line_that_is_there_twice_is_refused(folder, lines, number):
    """An entry, a checkpoint or the header."""
    assert refusal(folder, [*lines[: number + 1], *lines[number:]]) is not None


@pytest.mark.parametrize("number", range(len(KINDS)), ids=KINDS)
def test_a_line_that_is_missing_is_refused(folder, lines, number):
    """Every entry, the header, and the last checkpoint; an earlier one says nothing that a later one does not."""
    why = refusal(folder, [*lines[:number], *lines[number + 1 :]])
    assert why is not None or (KINDS[number] == "checkpoint" and number < len(KINDS) - 1)


@pytest.mark.parametrize("rest", [b"\n", b" ", b"x", b"\x00", b"{}", b"{}\n", b"[]\n", b"\r\n"])
def test_bytes_before_after_and_between_are_refused(folder, lines, rest):
    """An export ends with its last line, and holds nothing beside."""
    assert refusal(folder, [*lines, rest]) is not None
    assert refusal(folder, [rest, *lines]) is not None
    for number in range(1, len(lines)):
        assert refusal(folder, [*lines[:number], rest, *lines[number:]]) is not None


def test_other_spellings_of_the_same_values_are_refused(folder, data, lines):
    """Line ends of Windows, a byte order mark, spaces, another order of keys, escapes, another encoding."""
    spaced = [json.dumps(json.loads(line)).encode() + b"\n" for line in lines]
    backwards = [
        json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        for line in lines
    ]
    escaped = [json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode() + b"\n" for line in lines]
    for other in (data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data, data.decode().encode("utf-16")):
        assert refusal(folder, other) is not None
    for other in (spaced, backwards, escaped):
        assert refusal(folder, other) is not None
    assert refusal(folder, data) is None


def test_a_signature_put_in_is_refused(folder, lines):
    """`write` writes one signature a note: a reader accepts its exact bytes, and nothing else."""
    for number in (0, len(lines) - 1):
        value = json.loads(lines[number])
        value["checkpoint"] += "— stranger.example AAAAAAAA\n"
        other = [*lines[:number], canonical.dumps(value) + b"\n", *lines[number + 1 :]]
        assert refusal(folder, other) is not None, number


def test_signatures_of_another_key_are_refused(folder, lines):
    """Of one checkpoint, of the header's, or the header's key alone: one key signs all."""
    stranger = Signer.new(json.loads(lines[0])["key"].partition("+")[0])

    def signed_by_stranger(line):
        value = json.loads(line)
        state = verify_note(value["checkpoint"], export.read(folder / "a.export").key)
        return canonical.dumps(value | {"checkpoint": stranger.sign(state)}) + b"\n"

    for number in (n for n, kind in enumerate(KINDS) if not kind.startswith("entry")):
        assert refusal(folder, [*lines[:number], signed_by_stranger(lines[number]), *lines[number + 1 :]]) is not None
    header = canonical.dumps(json.loads(lines[0]) | {"key": str(stranger.key)}) + b"\n"
    assert refusal(folder, [header, *lines[1:]]) is not None


def test_a_checkpoint_of_another_origin_is_refused(folder, lines, signer):
    """A note signed with the ledger's key, but about a log of another name."""
    state = verify_note(json.loads(lines[-1])["checkpoint"], signer.key)
    note = signer.sign(Checkpoint(origin="another/log", size=state.size, root=state.root))
    header = canonical.dumps(json.loads(lines[0]) | {"checkpoint": note}) + b"\n"
    assert refusal(folder, [header, *lines[1:-1], canonical.dumps({"checkpoint": note}) + b"\n"]) is not None


def test_a_forged_export_is_whole_until_its_key_is_asked_for(folder, lines):
    """Who makes new keys can sign anything: `verify` has to be told whose ledger it should be."""
    entries = [line["entry"] for line in lines_of(folder / "a.export") if "entry" in line]
    stranger = Signer.new("discreet/ledger/forged")
    assert refusal(folder, forged(entries, stranger)) is None
    assert export.read(folder / "other.export").key == stranger.key


@pytest.mark.parametrize(
    ("number", "words", "change"),
    [
        (3, "event: expected the fields", lambda entry: entry["events"][0].update(mechanism="quantum-gaussian")),
        (3, "event: expected the fields", lambda entry: entry["events"][0].update(seed=1)),
        (5, "expected an entry of a known type", lambda entry: entry.update(type="REFUND")),
        (6, "unknown field 'witness'", lambda entry: entry.update(witness="w")),
        (0, "adjacency", lambda entry: entry["terms"].update(adjacency="replace-one")),
        (4, "reserved a second time", lambda entry: entry.update(round=1)),
        (6, "not waiting to be settled", lambda entry: entry.update(round=7)),
        (9, "time runs backwards", lambda entry: entry.update(time=1)),
        (13, "the one in force", lambda entry: entry.update(policy="x")),
        (13, "expected sequence 13, got 14", lambda entry: entry.update(sequence=14)),
        (2, "never opened", lambda entry: entry.update(account="c")),
    ],
)
def test_what_is_truly_signed_and_breaks_a_rule_is_refused(folder, signer, number, words, change):
    """The owner's own key does not help: unknown mechanisms, types and fields are never skipped, rules always hold."""
    entries = [copy.deepcopy(line["entry"]) for line in lines_of(folder / "a.export") if "entry" in line]
    change(entries[number])
    why = refusal(folder, forged(entries, signer))
    assert why is not None
    assert f"entry {number}: " in why
    assert words in why


@pytest.mark.parametrize("value", [[], {}, 1, "x", [1], {"type": []}, {"type": {}}, {"entry": {}}])
def test_a_truly_signed_entry_that_is_none_is_refused(folder, signer, value):
    """Whatever stands in its place, the error is a LedgerError."""
    entries = [line["entry"] for line in lines_of(folder / "a.export") if "entry" in line]
    entries[3] = value
    assert refusal(folder, forged(entries, signer)) is not None


@pytest.mark.parametrize(
    "header",
    [{"format": 0}, {"format": "1"}, {"extra": "x"}, {"key": "x"}, {"key": 1}, {"checkpoint": 1}, {"checkpoint": ""}],
)
def test_a_header_that_is_none_is_refused(folder, signer, header):
    """Format, key and checkpoint, each of its type, and nothing else."""
    assert "not whole: header" in refusal(folder, forged([], signer, header=header))


def test_a_newer_format_says_so(folder, signer):
    """The reader is told what to do."""
    assert "install a newer Discreet" in refusal(folder, forged([], signer, header={"format": 2, "new": "x"}))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"garbage", b"\x00" * 5000, b"{" * 3_000_000, b"[" * 200_000 + b"\n", b"SQLite format 3\x00"],
)
def test_a_file_that_is_no_export_is_refused(folder, content):
    """Empty, garbage, endless lines and endless nesting."""
    assert refusal(folder, content) is not None


def test_what_cannot_be_read_or_written_is_a_ledger_error(folder, tmp_path):
    """A missing file, a folder; and nothing is left behind where an export does not fit."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(LedgerError, match="cannot be read"):
            export.read(path)
    with pytest.raises(LedgerError, match="cannot be read"):
        export.write(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(LedgerError, match="expected a new file or an earlier export"):
        export.write(folder / "a.ledger", tmp_path)
    with pytest.raises(LedgerError, match="cannot be written"):
        export.write(folder / "a.ledger", tmp_path / "no" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_is_exported_while_it_is_written(tmp_path):
    """One state of it, whole, without closing it first."""
    with closing(filled(tmp_path / "a.ledger")) as ledger:
        export.write(tmp_path / "a.ledger", tmp_path / "before")
        assert ledger.reserve([charge(2, run="s")]) == [None]
        ledger.begin_run("t", {"a": share(1)})
        export.write(tmp_path / "a.ledger", tmp_path / "after")
    before, after = export.read(tmp_path / "before"), export.read(tmp_path / "after")
    assert before.books.size == ENTRIES < after.books.size
    assert after.entries[:ENTRIES] == before.entries
    assert (tmp_path / "after").read_bytes().startswith((tmp_path / "before").read_bytes().partition(b"\n")[2]) is False
