"""The command line as users and scripts meet it: real processes, exit codes, and nothing written on bad input."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from ledger_reader import kinds

from common.config import load
from common.ledger import Ledger, Share
from common.privacy.accounting import epsilon
from common.privacy.events import SampledGaussian
from common.transparency import export, notes
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.transparency.merkle import is_consistent, is_included
from common.transparency.notes import VerifierKey
from discreet import app

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "simulations" / "scenarios" / "digits.toml"
MNIST = ROOT / "simulations" / "scenarios" / "mnist-silos.toml"


def discreet(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real command."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "discreet", *map(str, arguments)],
        cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def here(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run the command in this process, which has the accountants' libraries already; return what it prints."""
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_answers_without_importing_torch():
    """`discreet --help` lists every verb, and starts no library that takes seconds."""
    code = (
        "import sys; sys.argv = ['discreet', '--help']\n"
        "import discreet\n"
        "try: discreet.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'flwr', 'opacus', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    verbs = ("init", "simulate", "plan", "epsilon", "bench", "report", "ledger", "policy")
    assert all(verb in done.stdout for verb in verbs)
    assert done.stdout.rstrip().endswith("[]")


def test_epsilon_of_the_tf_privacy_tutorial():
    """Batch 256 of 60,000, noise 1.1, 60 epochs: 2.3817 by PLD, in PRV's interval and below RDP."""
    done = discreet(
        "epsilon", "--noise-multiplier", "1.1", "--sampling-rate", "0.004266666666666667", "--steps", "14062",
        "--delta", "1e-5", "--json",
    )  # fmt: skip
    table = json.loads(done.stdout)
    assert table["pld"] == pytest.approx(2.3817, abs=5e-5)
    assert table["prv_interval"][0] < table["pld"] < table["prv_interval"][1]
    assert table["pld"] < table["rdp"] == pytest.approx(2.5966, abs=1e-3)
    assert table["adjacency"] == "zero-out"


def test_epsilon_of_a_heterogeneous_history(tmp_path):
    """Segments compose: row het-1 of the reference, 1.8975."""
    segments = tmp_path / "segments.json"
    segments.write_text(
        '[{"noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 500},'
        ' {"noise_multiplier": 1.5, "sampling_rate": "1/50", "steps": 500}]'
    )
    table = json.loads(discreet("epsilon", "--segments", segments, "--json").stdout)
    assert table["pld"] == pytest.approx(1.8975, abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--noise-multiplier", "0", "--sampling-rate", "0.1", "--steps", "1"], "noise_multiplier"),
        (["--noise-multiplier", "1", "--sampling-rate", "1.5", "--steps", "1"], "sampling_rate"),
        (["--noise-multiplier", "nan", "--sampling-rate", "0.1", "--steps", "1"], "noise_multiplier"),
        (["--noise-multiplier", "1", "--sampling-rate", "1/0", "--steps", "1"], "options"),
        (["--noise-multiplier", "1"], "--sampling-rate"),
    ],
)
def test_epsilon_of_impossible_values_is_bad_input(arguments, words):
    """Zero noise, a rate above 1, NaN: exit code 2 and the name of the figure."""
    done = discreet("epsilon", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_delta_too_small_to_compute_with_is_refused():
    """Below 1e-10 rounding decides: no figure is given."""
    done = discreet("epsilon", "--noise-multiplier", "1", "--sampling-rate", "0.1", "--steps", "1", "--delta", "1e-12")
    assert done.returncode == 1
    assert "1e-10" in done.stderr


def test_init_writes_a_scenario_that_plans(tmp_path):
    """A newcomer's first two commands work, and init overwrites nothing."""
    assert discreet("init", tmp_path / "study").returncode == 0
    scenario = tmp_path / "study" / "scenario.toml"
    assert load(scenario) == load(DIGITS)
    assert discreet("plan", scenario, "--json").returncode == 0
    again = discreet("init", tmp_path / "study")
    assert again.returncode == 2
    assert "scenario.toml" in again.stderr


def test_plan_states_what_each_client_will_spend():
    """With spares at most epsilon, without them a little less; the other accountants agree with --check."""
    table = json.loads(discreet("plan", DIGITS, "--check", "--json").stdout)
    (account,) = table["accounts"]
    assert (account["clients"], account["records"], account["participations"], account["reserved"]) == (
        10,
        143,
        120,
        122,
    )
    assert account["sampling_rate"] == 72 / 143
    assert 7.98 < account["epsilon_reserved"] <= 8.0
    assert 7.8 < table["epsilon"]["max"] < account["epsilon_reserved"]
    assert account["check"]["pld"] == account["epsilon_reserved"] <= account["check"]["rdp"]


def test_plan_refuses_to_exceed_the_budget():
    """A plan that needs more than the lifetime budget exits with 1 and both figures."""
    done = discreet("plan", DIGITS, "--set", "privacy.budget=4")
    assert done.returncode == 1
    assert "7.99" in done.stderr
    assert "4.000" in done.stderr


BAD = {
    "unknown key": (["--set", "privacy.epsilno=3"], "did you mean privacy.epsilon"),
    "unknown table": (["--set", "prvacy.epsilon=3"], "did you mean privacy"),
    "wrong type": (["--set", "run.rounds=many"], "run.rounds"),
    "epsilon not above 0": (["--set", "privacy.epsilon=0"], "privacy.epsilon"),
    "epsilon NaN": (["--set", "privacy.epsilon=nan"], "privacy.epsilon"),
    "delta above 1/N": (["--set", "privacy.delta=0.01"], "1/143"),
    "cohort above clients": (["--set", "server.cohort=11"], "server.cohort"),
    "clip of 0": (["--set", "privacy.max_grad_norm=0"], "privacy.max_grad_norm"),
    "batch above records": (["--set", "training.batch_size=144"], "training.batch_size"),
    "batch normalisation": (["--set", "model.normalization=batch"], "model.normalization"),
    "more clients than records": (
        ["--set", "data.clients=1438", "--set", "server.cohort=10", "--set", "training.batch_size=1"],
        "data.clients",
    ),
    "no natural partition": (["--set", "data.partition=natural"], "data.partition"),
    "image model for text": (["--set", "data.dataset=sms-spam"], "model.name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error_and_writes_nothing(case, tmp_path):
    """Exit code 2, one line that names the key, no traceback, no run folder."""
    overrides, words = BAD[case]
    done = discreet("simulate", DIGITS, "--out", tmp_path / "run", *overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_set_names_the_file_that_was_expected(tmp_path):
    """The error says which file belongs where, and nothing is written."""
    done = discreet("simulate", MNIST, "--out", tmp_path / "run", cwd=tmp_path, DISCREET_DATA=str(tmp_path / "data"))
    assert done.returncode == 2
    assert str(tmp_path / "data" / "mnist" / "train-images-idx3-ubyte.gz") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_scenario_says_how_to_get_one(tmp_path):
    """The remedy is in the message."""
    done = discreet("simulate", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "discreet init" in done.stderr


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path):
    """A run never mixes with what is there."""
    (tmp_path / "kept.txt").write_text("kept")
    done = discreet("simulate", DIGITS, "--out", tmp_path)
    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("name", sorted(path.name for path in DIGITS.parent.glob("*.toml")))
def test_every_shipped_scenario_reads(name):
    """The scenarios that come with Discreet are valid and say what they are."""
    path = DIGITS.parent / name
    assert load(path).run.name
    assert path.read_text().startswith("# ")


# --- ledgers ----------------------------------------------------------------------------------------------------------

EVENT = SampledGaussian(noise_multiplier=2.0, sampling_rate=Fraction(1), steps=1)
TERMS = Terms(
    owner="St Mary",
    lineage="wards",
    version="1",
    records=100,
    unit="record",
    adjacency="zero-out",
    delta=1e-5,
    budget=8.0,
    policy="0" * 64,
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A ledger with one account, its export, and a checkpoint that was seen before its last entry."""

    ledger: Path
    export: Path
    seen: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Kept:
    """One run of two participations: GENESIS, RESERVE, twice (RESERVE, COMMIT); the run is not closed."""
    folder = tmp_path_factory.mktemp("kept")
    with closing(Ledger.create(folder / "wards.db")) as ledger:
        ledger.open_accounts({"wards": TERMS})
        ledger.begin_run("run-7", {"wards": Share(events=(EVENT,), wanted=2)})
        for number in (1, 2):
            (folder / "seen.note").write_text(ledger.checkpoint)
            charge = Charge(account="wards", run="run-7", round=number, attempt=1, events=(EVENT,))
            assert ledger.reserve([charge]) == [None]
            ledger.settle([charge])
    export.write(folder / "wards.db", folder / "wards.jsonl")
    return Kept(ledger=folder / "wards.db", export=folder / "wards.jsonl", seen=folder / "seen.note")


def test_ledger_new_makes_a_ledger_and_its_keys(tmp_path):
    """Three files, the private key for its owner's eyes only; what is shown is the public one; a second is refused."""
    made = discreet("ledger", "new", tmp_path / "wards.db")
    assert made.returncode == 0, made.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"wards.db", "wards.db.key", "wards.db.pub"}
    assert (tmp_path / "wards.db.key").stat().st_mode & 0o777 == 0o600
    public = (tmp_path / "wards.db.pub").read_text().strip()
    assert f"need this line: {public}\n" in made.stdout
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = discreet("ledger", "new", tmp_path / "wards.db")
    assert (again.returncode, "Traceback" in again.stderr) == (1, False)
    assert "expected no file, got one" in again.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_ledger_show_says_what_is_spent_and_left(kept, capsys):
    """Scripts read every figure by name; people are told the same in words."""
    table = json.loads(here(capsys, "ledger", "show", kept.ledger, "--entries", "2", "--json"))
    assert table.keys() == {"origin", "size", "root", "key", "accounts", "entries"}
    (account,) = table["accounts"]
    spent = epsilon((EVENT.times(2),), delta=1e-5)
    assert account["epsilon"] == account["check"]["pld"] == spent
    assert account["left"] == account["budget"] - account["filter_epsilon"] < 8.0 - spent
    plain = {name: account[name] for name in ("account", "owner", "unit", "adjacency", "delta", "records", "runs")}
    assert plain == {
        "account": "wards",
        "owner": "St Mary",
        "unit": "record",
        "adjacency": "zero-out",
        "delta": 1e-5,
        "records": 100,
        "runs": 1,
    }
    assert [(entry["sequence"], entry["type"], entry["round"]) for entry in table["entries"]] == [
        (4, "RESERVE", 2),
        (5, "COMMIT", 2),
    ]
    words = here(capsys, "ledger", "show", kept.ledger)
    assert f"{spent:.3f}" in words
    assert "Each ε protects one record, at δ = 1e-05, zero-out adjacency." in words
    assert table["root"] in words


@pytest.mark.parametrize("content", [None, b"", b"rubbish\n"])
def test_ledger_that_does_not_read_is_refused(tmp_path, content):
    """Missing, empty or foreign: exit code 1 and one line."""
    if content is not None:
        (tmp_path / "l.db").write_bytes(content)
    done = discreet("ledger", "verify", tmp_path / "l.db")
    assert done.returncode == 1
    assert "l.db" in done.stderr
    assert "Traceback" not in done.stderr


def test_ledger_and_export_verify_alike(kept, capsys):
    """Size and root are the same; with the public key the signer is known, without it he is not."""
    table = json.loads(here(capsys, "ledger", "verify", kept.export, "--json"))
    ledger = discreet("ledger", "verify", kept.ledger, "--key", f"{kept.ledger}.pub", "--extends", kept.seen)
    assert ledger.returncode == 0, ledger.stderr
    assert table.keys() == {"origin", "size", "root", "key", "accounts", "signer"}
    assert (table["signer"], table["size"]) == ("unknown", 6)
    assert f"Whole, signed by {table['origin']}, and it adds up." in ledger.stdout
    assert f"6 entries, root {table['root']}" in ledger.stdout


@pytest.mark.parametrize("entry", [0, 3, 5])
def test_ledger_verify_names_the_entry_of_one_changed_byte(kept, entry, tmp_path):
    """In the first, the fourth or the last entry one letter is another: exit code 1, and its number."""
    lines = kept.export.read_bytes().splitlines(keepends=True)
    (place,) = [place for place, line in enumerate(lines) if b'"sequence":%d,' % entry in line]
    lines[place] = lines[place].replace(b"wards", b"warts", 1)
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"".join(lines))
    done = discreet("ledger", "verify", changed)
    assert done.returncode == 1
    assert f"not whole: entry {entry}: its hash is not the one beside it" in done.stderr
    assert "Traceback" not in done.stderr


def test_ledger_verify_refuses_a_file_that_was_cut_off(kept, tmp_path):
    """Without its last entry and checkpoint the lines do not reach the size that the header names."""
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(kept.export.read_bytes().splitlines(keepends=True)[:-2]))
    done = discreet("ledger", "verify", cut)
    assert done.returncode == 1
    assert "expected 6 entries that are all signed, got 5" in done.stderr


def test_ledger_verify_refuses_another_key_and_an_older_copy(kept, tmp_path):
    """Another owner's key, and a ledger that is shorter than when it was seen: exit code 1; what is no key: 2."""
    with closing(Ledger.create(tmp_path / "other.db")) as other:
        other.open_accounts({"wards": TERMS})
        short = other.checkpoint
    foreign = discreet("ledger", "verify", kept.export, "--key", tmp_path / "other.db.pub")
    assert foreign.returncode == 1
    assert "It is another ledger, or a forged one." in foreign.stderr
    (tmp_path / "short.note").write_text(short)
    stranger = discreet("ledger", "verify", kept.export, "--extends", tmp_path / "short.note")
    assert stranger.returncode == 1
    assert "The earlier checkpoint is not of this ledger" in stranger.stderr
    no_key = discreet("ledger", "verify", kept.export, "--key", kept.seen)
    assert no_key.returncode == 2
    assert "expected a public key" in no_key.stderr


def test_ledger_export_is_what_the_reader_accepts(kept, tmp_path):
    """The command writes the lines, byte for byte, and says how to check them."""
    done = discreet("ledger", "export", kept.ledger, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == kept.export.read_bytes()
    assert f"discreet ledger verify {tmp_path / 'out.jsonl'}" in done.stdout
    assert discreet("ledger", "export", tmp_path / "none.db", "--out", tmp_path / "x.jsonl").returncode == 1
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("place", ["l.db", "l.db.key"])
def test_ledger_export_never_replaces_a_ledger_or_its_key(tmp_path, place):
    """An export in the ledger's own place would end its account: it is refused, and the ledger opens as before."""
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({"wards": TERMS})
    done = discreet("ledger", "export", tmp_path / "l.db", "--out", tmp_path / place)
    with closing(Ledger(tmp_path / "l.db")) as ledger:
        assert ledger.books.size == 1
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr


def test_ledger_proof_proves_an_entry_and_a_beginning(kept):
    """Both proofs check against the signed checkpoint that comes with them, by the formulas of RFC 6962 alone."""
    key = VerifierKey.parse(Path(f"{kept.ledger}.pub").read_text())
    inside = json.loads(discreet("ledger", "proof", kept.export, "--entry", "3").stdout)
    assert inside.keys() == {"entry", "leaf", "size", "root", "proof", "checkpoint"}
    signed = notes.verify(inside["checkpoint"], key)
    hashes = tuple(bytes.fromhex(item) for item in inside["proof"])
    leaf = bytes.fromhex(inside["leaf"])
    assert (signed.size, signed.root.hex()) == (inside["size"], inside["root"]) == (6, inside["root"])
    assert is_included(leaf, index=3, size=6, root=signed.root, proof=hashes)
    assert not is_included(leaf, index=2, size=6, root=signed.root, proof=hashes)
    since = json.loads(discreet("ledger", "proof", kept.ledger, "--since", "4").stdout)
    assert since.keys() == {"since", "size", "root", "proof", "checkpoint"}
    seen = notes.verify(kept.seen.read_text(), key)
    assert seen.size == 4
    hashes = tuple(bytes.fromhex(item) for item in since["proof"])
    assert is_consistent(old_size=4, old_root=seen.root, size=6, root=signed.root, proof=hashes)


@pytest.mark.parametrize("options", [[], ["--entry", "1", "--since", "1"], ["--entry", "6"], ["--since", "7"]])
def test_ledger_proof_of_what_is_not_there_is_bad_input(kept, options):
    """Neither, both, or a number beyond the last entry: exit code 2."""
    done = discreet("ledger", "proof", kept.export, *options)
    assert done.returncode == 2
    assert "expected" in done.stderr
    assert "Traceback" not in done.stderr


def test_ledger_close_frees_what_an_abandoned_run_did_not_use(kept, tmp_path):
    """The run is named by its beginning; one that is not there is bad input, and writes nothing."""
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({"wards": TERMS})
        ledger.begin_run("run-7", {"wards": Share(events=(EVENT,), wanted=2)})
        ledger.reserve([Charge(account="wards", run="run-7", round=1, attempt=1, events=(EVENT,))])
    unknown = discreet("ledger", "close", tmp_path / "l.db", "run-8")
    assert unknown.returncode == 2
    assert "expected one run that begins with 'run-8', got 0" in unknown.stderr
    done = discreet("ledger", "close", tmp_path / "l.db", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Run run-7 is closed on 1 accounts; 1 reserved participations are free again.\n"
    assert kinds(tmp_path / "l.db") == ["GENESIS", "RESERVE", "RESERVE", "EXPIRE", "COMMIT"]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_policy_init_prints_a_policy_that_checks(tmp_path):
    """A newcomer's first two commands: what is printed reads back, in words and as plain values."""
    printed = discreet("policy", "init", "--owner", 'St Mary\'s "new" wing')
    assert printed.returncode == 0, printed.stderr
    path = tmp_path / "policy.toml"
    path.write_text(printed.stdout)
    table = json.loads(discreet("policy", "check", path, "--json").stdout)
    assert table.keys() == {"digest", "unit", "policy", "largest_posterior", "largest_posterior_per_run"}
    assert table["policy"]["owner"] == 'St Mary\'s "new" wing'
    assert (table["unit"], table["policy"]["budget"]["epsilon"]) == ("record", 8.0)
    assert table["largest_posterior_per_run"] == pytest.approx(0.98201, abs=1e-5)  # e^4 / (1 + e^4)
    words = discreet("policy", "check", path)
    assert words.returncode == 0
    assert "In one run: epsilon at most 4.0, so that 50 % becomes at most 98.21 %." in words.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "discreet policy init"),
        ("rubbish", "not a TOML file"),
        ("version = 3", "version: expected 2, got 3"),
        ('version = 2\nowner = "x"', "data"),
    ],
    ids=["missing", "rubbish", "newer", "half"],
)
def test_policy_that_does_not_read_is_bad_input(tmp_path, content, words):
    """Exit code 2, and one line that says what is wrong."""
    if content is not None:
        (tmp_path / "policy.toml").write_text(content)
    done = discreet("policy", "check", tmp_path / "policy.toml")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_policy_for_nobody_is_bad_input():
    """An owner without a name has no policy."""
    done = discreet("policy", "init", "--owner", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
