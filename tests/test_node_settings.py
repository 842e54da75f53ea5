"""A node's settings: every mistake is named by file, key, expected, got and what to do."""

import pytest

from client.node import settings
from common.errors import SettingsError

WHOLE = """
identity = "keys"
link = "hub.example:9443"
ledger = "/srv/ledger.db"
ledger_seen = "seen"
state = "s"
train_timeout_s = 5.5
[data]
kind = "npz"
path = "data.npz"
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"")
    path = tmp_path / "node.toml"

    def written(text):
        path.write_text(text)
        return path

    return written


def test_paths_are_beside_the_file(write, tmp_path):
    """A relative path is beside node.toml, wherever the node is started; a full one stays."""
    read = settings.read(write(WHOLE))
    assert (read.identity, read.state, read.ledger_seen) == (tmp_path / "keys", tmp_path / "s", tmp_path / "seen")
    assert str(read.ledger) == "/srv/ledger.db"
    assert read.data.path == str(tmp_path / "data.npz")
    assert (read.link, read.train_timeout_s) == ("hub.example:9443", 5.5)


def test_all_but_the_data_has_a_default(write, tmp_path):
    """The shortest file says where the data lie."""
    read = settings.read(write('[data]\nkind = "npz"\npath = "data.npz"'))
    assert (read.identity, read.ledger, read.link) == (tmp_path / "identity", tmp_path / "ledger.db", "")
    assert read.train_timeout_s == 600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rubbish", "expected a TOML file"),
        ("", r"data: expected a value, got none; add it"),
        (WHOLE.replace("ledger_seen", "ledger_sen"), r"ledger_sen: unknown key; did you mean ledger_seen"),
        (WHOLE.replace("5.5", '"long"'), r"train_timeout_s: expected a valid number, got 'long'"),
        (WHOLE.replace("5.5", "0.0"), r"train_timeout_s: expected greater than 0, got 0.0"),
        (WHOLE.replace("hub.example:9443", "https://hub"), r"link: expected host:port or nothing"),
        (WHOLE.replace('"npz"', '"xls"'), r"data\.kind: expected .*'npz'.* got 'xls'"),
        (WHOLE.replace("data.npz", "gone.npz"), r"data\.path: expected a file or folder, got .*gone\.npz"),
    ],
    ids=["rubbish", "no data", "misspelt", "no number", "zero", "an address with a scheme", "kind", "no file"],
)
def test_a_mistake_is_named(write, text, said):
    """With the file, the key, what was expected, what was got."""
    with pytest.raises(SettingsError, match=rf"(?s)node\.toml.*{said}"):
        settings.read(write(text))


def test_a_missing_file_says_what_to_write(tmp_path):
    """The message has a remedy."""
    with pytest.raises(SettingsError, match=r"node\.toml: expected a node's settings.*\[data\].*--node"):
        settings.read(tmp_path / "node.toml")


def test_the_state_is_for_its_owner_alone(tmp_path):
    """Nobody else looks into the folder, also when it was open before."""
    (tmp_path / "state").mkdir(mode=0o755)
    settings.make_private(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
