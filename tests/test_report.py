"""The officer's page: all that must be on it, in words; nothing of it from a network, nothing unescaped."""

import re
from contextlib import closing
from fractions import Fraction
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from common.config import dump, parse
from common.errors import BadInputError, LedgerError
from common.ledger import Ledger, Share
from common.messages import Refusal
from common.privacy import accounting
from common.privacy.accounts import account_names, terms_of
from common.privacy.events import SampledGaussian, ZeroConcentrated
from common.privacy.plan import make_plan
from common.privacy.plan_file import to_json
from common.privacy.renyi_filter import filter_epsilon, filter_order
from common.transparency import drafts, export
from common.transparency.drafts import Charge
from common.transparency.entries import Terms
from common.transparency.provenance import provenance
from simulations import report, report_charts
from simulations.report_facts import best_guess, facts, most_hits

EVENT = SampledGaussian(noise_multiplier=10.0, sampling_rate=Fraction(1), steps=1)
HOSTILE = '<script>alert("x")</script>'
SCENARIO = """
run = {name = "study-7", rounds = 4}
data = {dataset = "digits", clients = 2}
training = {batch_size = 100, local_steps = 1}
server = {cohort = 2, spare_rounds = 1}
"""
PRIVACY = {
    "record": 'privacy = {noise_multiplier = 8.0, budget = 3.0, delta = 1e-5, metrics = "none"}',
    "client": 'privacy = {unit = "client", noise_multiplier = 4.0, budget = 5.0, delta = 1e-3}',
    "none": 'privacy = {unit = "none"}',
}
ROUNDS = """round,cohort,replies,refused,accuracy,loss,epsilon_max,seconds,client_accuracy
1,2,2,0,0.25,2.30,1.5,0.5,
2,2,2,0,,,,0.5,
3,2,1,1,0.75,1.10,2.25,0.5,0.7
"""
OFFICER = (  # PRIVACY.md, "What the officer reads"
    "St Mary", "cardiology", "2026-03", "1 run;", "one record", "zero-out", "10⁻⁵ (1 in 100,000)", "N = 1,000",
    "δ·N = 0.01",
    "ε so far", "ε left", "ε lifetime budget", "participations", "Who sees what", "Threat model T1", "at even odds",
    "e^ε/(1+e^ε)", "1 % of those not in the data are wrongly accused", "The same person in several organisations",
    "Assumptions", "Poisson sample", "Three accountants", "PLD", "PRV", "RDP", "Rényi filter of order", "Origin",
    "Root",
    "Witnesses none in this version", "Audits", "Refusals", "Changes of policy", "What is not covered", "Timing.",
    "NIST SP 800-226", "Unit of privacy", "Side channels", "Data collection exposure",
)  # fmt: skip


class Reader(HTMLParser):
    """Reads a page as text, and notes its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += "^" if tag == "sup" else " " if tag in {"td", "th", "dd", "dt", "p", "li", "tr"} else ""

    def handle_data(self, data):
        self.text += "" if self._inside == "style" else data


def read(page: str) -> Reader:
    """A page's tags, and its words with single spaces."""
    reader = Reader()
    reader.feed(page)
    reader.text = " ".join(reader.text.split())
    return reader


def terms(**changes: object) -> Terms:
    """An owner's terms, with changes."""
    values = {
        "owner": "St Mary", "lineage": "cardiology", "version": "2026-03", "records": 1000, "unit": "record",
        "adjacency": "zero-out", "delta": 1e-5, "budget": 3.0, "policy": "a" * 64,
    }  # fmt: skip
    return Terms(**(values | changes))  # type: ignore[arg-type]


def charge(number: int, run: str = "run-1", account: str = "cardiology", events=(EVENT,)) -> Charge:
    return Charge(account=account, run=run, round=number, attempt=1, events=events)


def one_run(path: Path, *, charged: int = 3, wanted: int = 5, given: Terms | None = None) -> Path:
    """A ledger with one account and one run on it, still open."""
    with closing(Ledger.create(path)) as ledger:
        ledger.open_accounts({"cardiology": given or terms()})
        ledger.begin_run("run-1", {"cardiology": Share(events=(EVENT,), wanted=wanted)})
        for number in range(1, charged + 1):
            ledger.reserve([charge(number)])
        ledger.settle([charge(number) for number in range(1, charged)])
    return path


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> Path:
    return one_run(tmp_path_factory.mktemp("ledger") / "cardiology.db")


@pytest.fixture(scope="module")
def page(ledger) -> str:
    return report.render(ledger)


@pytest.fixture(scope="module")
def text(page) -> str:
    return read(page).text


def folder_of(path: Path, unit: str) -> Path:
    """A run's folder after three of four rounds, of which one was lost before."""
    scenario = parse(SCENARIO + PRIVACY[unit])
    plan = make_plan(scenario, records=(800, 800), run=f"{unit}-run")
    (path / "checkpoint").mkdir(parents=True)
    (path / "checkpoint" / "attempts.txt").write_text("1\n2\n2\n3\n")
    (path / "scenario.toml").write_text(dump(scenario))
    (path / "plan.json").write_text(to_json(plan))
    (path / "rounds.csv").write_text(ROUNDS)
    (path / "clients.csv").write_text("client,refusals\n0,0\n1,1\n")
    if unit != "none":
        names = account_names(scenario, plan)
        with closing(Ledger.create(path / "ledger.db")) as ledger:
            ledger.open_accounts(terms_of(scenario, plan))
            events = plan.accounts[0].events
            ledger.begin_run(plan.run, {name: Share(events=events, wanted=5) for name in names})
            for number in range(1, 4):
                ledger.reserve([charge(number, plan.run, name, events) for name in names])
    return path


@pytest.fixture(scope="module", params=["record", "client", "none"])
def run(request, tmp_path_factory) -> tuple[str, str]:
    """The unit of a run, and its page."""
    return request.param, report.render(folder_of(tmp_path_factory.mktemp(request.param) / "run", request.param))


@pytest.mark.parametrize("item", OFFICER)
def test_the_officer_finds_every_item(text, item):
    """Everything that PRIVACY.md lists for the officer is on the page, by its words."""
    assert item in text


def test_figures_are_those_of_the_accountants(ledger, text):
    """Epsilon by three accountants is what they answer for the ledger's events, rounded up."""
    verdict = accounting.check((EVENT.times(3),), delta=1e-5)
    assert f"tells at most ε = {report.up(verdict.reported)}" in text
    assert f"PLD {report.up(verdict.reported, 4)}" in text
    assert f"between {report.down(verdict.prv_low or 0, 4)} and {report.up(verdict.prv_high or 0, 4)}" in text
    assert f"RDP {report.up(verdict.rdp, 4)}" in text
    (balance,) = facts(export.read(ledger)).balances
    assert f"filter {report.up(balance.filter_epsilon or 0, 4)}" in text
    held = filter_epsilon((EVENT.times(5),), order=filter_order((EVENT,), budget=3.0, delta=1e-5), delta=1e-5)
    assert f"by the stricter filter {report.down(3.0 - held)} " in text  # the open run's five count, not its three


def test_a_run_is_told_with_what_it_charged_and_what_is_unsettled(text):
    """The table of runs has participations, epsilon of the run alone, its events in words, and its state."""
    alone = report.up(accounting.epsilon((EVENT.times(3),), delta=1e-5))
    assert f"3 of 5 {alone} 1 step with Gaussian noise of 10 times the clipping bound, over all records" in text
    assert "open, 1 unsettled (charged)" in text
    assert f"ε would be {report.up(accounting.epsilon((EVENT.times(5),), delta=1e-5))}" in text


def test_several_organisations_are_composed(text):
    """Somebody in j organisations is protected by the composition of j such histories."""
    for times in (2, 3):
        assert f" {times} {report.up(accounting.epsilon((EVENT.times(3 * times),), delta=1e-5))} " in text


def test_the_same_ledger_gives_the_same_bytes(ledger, page):
    """Nothing on the page depends on when or how often it is made."""
    assert report.render(ledger) == page


def test_an_export_gives_the_same_page_as_its_ledger(ledger, text, tmp_path):
    """What an officer makes from the export is what the owner made from the ledger, names of files aside."""
    out = tmp_path / "cardiology.jsonl"
    export.write(ledger, out)
    assert read(report.render(out)).text.replace("cardiology.jsonl", "cardiology.db") == text


def test_nothing_is_loaded_and_nothing_runs(run, page):
    """No script, no address, no link to the outside; the page's own policy forbids them too."""
    for made in (page, run[1]):
        tags = read(made).tags
        assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in tags}
        addresses = [
            value for _, given in tags for name, value in given.items() if name in {"src", "href", "xlink:href"}
        ]
        assert all(str(address).startswith("#") for address in addresses)
        assert not re.search(r"https?://|@import|url\((?!#)", made)
        assert "default-src 'none'" in made


def test_the_page_is_accessible(run, page):
    """Headings go down one step at a time, columns have a scope, drawings say what they show, ids are unique."""
    for made in (page, run[1]):
        tags = read(made).tags
        levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert all("scope" in given for tag, given in tags if tag == "th")
        drawings = [given for tag, given in tags if tag == "svg"]
        assert drawings
        assert all(given["role"] == "img" and {"aria-label", "aria-labelledby"} & given.keys() for given in drawings)
        ids = [given["id"] for _, given in tags if "id" in given]
        assert len(ids) == len(set(ids))


def test_hostile_names_are_text(tmp_path):
    """A name with markup in it is shown, not obeyed, wherever it comes from."""
    path = one_run(tmp_path / "l.db", given=terms(owner=HOSTILE, lineage="<b>&", version='"><img src=x>'))
    with closing(Ledger(path)) as ledger:
        ledger.audited("cardiology", "run-1", {HOSTILE: "<i>"})
    made = report.render(path)
    assert HOSTILE not in made
    assert HOSTILE in read(made).text
    assert not {"script", "img", "b", "i"} & {tag for tag, _ in read(made).tags}


def test_an_account_without_runs_has_spent_nothing(tmp_path):
    """Before the first run the page says so, and the odds are those of a blind guess."""
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({"cardiology": terms()})
    words = read(report.render(tmp_path / "l.db")).text
    assert "Nothing has been spent yet." in words
    assert "No run was ever admitted on this account." in words
    assert "is right 50 % 50.01 %" in words  # (1 + delta) / 2, rounded up


def test_changes_and_refusals_and_audits_are_shown(tmp_path):
    """A raised budget, a refused run and an audit's findings are on every page that follows."""
    path = one_run(tmp_path / "l.db")
    with closing(Ledger(path)) as ledger:
        ledger.open_accounts({"cardiology": terms(budget=4.0, policy="b" * 64)})
        ledger.refuse(charge(0, "run-2"), Refusal.OUTSIDE_POLICY)
        ledger.audited("cardiology", "run-1", {"one-run test": "not refuted at 95 %"})
        ledger.decided("cardiology", "run-1", decision="approved", by="Dr Grey", purpose="a trial", scenario="e" * 64)
    words = read(report.render(path)).text
    assert "lifetime budget ε 3.000 4.000" in words
    assert "run-2 0 1 outside-policy the owner's policy does not allow it" in words
    assert "one-run test: not refuted at 95 %" in words
    assert "1 recorded audit" in words
    assert "run-1 approved Dr Grey a trial" in words


def test_an_audit_shows_its_verdict_its_bounds_and_whose_code_it_attacked(tmp_path):
    """Noted on two accounts at once it is one line; another code than the one that charged is said in bold."""
    path = one_run(tmp_path / "l.db")
    found = {
        "kind": "offline", "verdict": "not refuted", "confidence": "0.9999", "claimed_epsilon": "2.5",
        "delta": "1e-05", "lower_bound_f_dp": "1.75", "lower_bound_steinke": "0.5", "lower_bound_gaussian": "2.25",
        "canaries": "1000", "rounds": "120", "code": provenance().code, "libraries": "torch=2",
    }  # fmt: skip
    with closing(Ledger(path)) as ledger:
        ledger.open_accounts({"neurology": terms()})
        for account in ("cardiology", "neurology"):
            ledger.audited(account, "run-9", found)
        ledger.audited("cardiology", "run-10", found | {"verdict": "REFUTED by noise", "code": "f" * 64})
    words = read(report.render(path)).text
    assert "cardiology and 1 more run run-9: 1000 canaries, 120 rounds (offline) 2.5" in words
    assert "1.75 (f-DP), 0.5 (Steinke), 2.25 (Gaussian estimate) not refuted" in words
    assert f"{provenance().code[:8]}, the one that charged" in words
    assert "REFUTED by noise ffffffff, not the one that charged" in words


def test_what_is_spent_beyond_a_lowered_budget_is_said(tmp_path):
    """When the owner lowers the budget below what is spent, the page says so and nothing is left."""
    path = one_run(tmp_path / "l.db")
    with closing(Ledger(path)) as ledger:
        ledger.open_accounts({"cardiology": terms(budget=0.1)})
    words = read(report.render(path)).text
    assert "More is spent than the owner allows now." in words
    assert "by the stricter filter 0.000" in words


def test_an_accountant_that_is_silent_is_named(tmp_path):
    """Where PLD and PRV cannot answer, RDP is reported, and the page says who could not and why."""
    event = ZeroConcentrated(rho=0.01)
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({"cardiology": terms()})
        ledger.begin_run("run-1", {"cardiology": Share(events=(EVENT,), wanted=1)})
        ledger.reserve([charge(1)])
        ledger.settle([charge(1)])
        ledger.end_run("run-1")
        with ledger._log.writing() as write:
            write(drafts.reserve(charge(0, "run-2", events=(event,)), policy="a" * 64, participations=2))
            write(drafts.reserve(charge(1, "run-2", events=(event,)), policy="a" * 64))
    words = read(report.render(tmp_path / "l.db")).text
    assert "PLD no answer" in words
    assert "PLD cannot answer: it does not know zcdp events." in words
    assert "looser upper bound by Rényi divergences; reported on this page" in words
    assert "1 step of 0.01-zCDP" in words


def test_the_accounts_of_a_ledger_are_compared(tmp_path):
    """With many accounts the one that spent most is explained, and the others are in a table and in a drawing."""
    names = [f"ward-{number}" for number in range(10)]
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({name: terms(owner=name) for name in names})
        ledger.begin_run("run-1", {name: Share(events=(EVENT,), wanted=4) for name in names})
        for number, name in enumerate(names):
            ledger.reserve([charge(turn, account=name) for turn in range(1, 2 + number // 4)])
    made = report.render(tmp_path / "l.db")
    most, least = (report.up(accounting.epsilon((EVENT.times(turns),), delta=1e-5)) for turns in (3, 1))
    words = read(made).text
    assert "account ward-8: the one that spent most, of 10 in this ledger" in words
    assert f"the one that spent least {least}" in words
    assert f"ward-8 and 1 more ward-8, … 1,000 records 1 {most}" in words
    assert "How ε is spread over 10 accounts" in made


def test_a_run_folder_says_how_the_run_went(run):
    """Purpose, rounds done and lost, and drawings of accuracy and epsilon are on a run's page."""
    unit, made = run
    words = read(made).text
    assert "run study-7" in words
    assert "3 of 4 done; 1 more was begun and lost, or not yet done" in words
    assert "Accuracy on public test data: 0.25 in round 1, 0.75 in round 3." in words
    assert ("ε of this run so far" in words) == ("epsilon_max" in made.replace("rounds-epsilon_max", "epsilon_max"))
    assert ("1 orders were refused" in words) == (unit != "client")


def test_each_unit_has_its_own_words(run):
    """A record and a client are protected from different eyes; without privacy nothing is."""
    unit, made = run
    words = read(made).text
    assert ("Threat model T1" in words) == (unit == "record")
    assert ("Threat model T2" in words) == (unit == "client")
    assert ("one client, with all its records" in words) == (unit == "client")
    assert ("Who took part, how many and who refused are left out" in words) == (unit == "client")
    assert ("Nothing is protected." in words) == (unit == "none")


def test_a_person_is_a_unit_of_its_own(tmp_path):
    """With persons as the unit the page speaks of persons."""
    event = SampledGaussian(noise_multiplier=10.0, sampling_rate=Fraction(1), steps=1, unit="person")
    with closing(Ledger.create(tmp_path / "l.db")) as ledger:
        ledger.open_accounts({"cardiology": terms(unit="person")})
        ledger.begin_run("run-1", {"cardiology": Share(events=(event,), wanted=1)})
        ledger.reserve([charge(1, events=(event,))])
    words = read(report.render(tmp_path / "l.db")).text
    assert "one person, with all its records" in words
    assert "over all persons" in words
    assert "A person with several records" not in words
    assert "may not hold" not in words


def test_a_broken_ledger_has_no_page(ledger, tmp_path):
    """A ledger in which one byte differs is refused, and no file is written."""
    out = tmp_path / "l.jsonl"
    export.write(ledger, out)
    out.write_bytes(out.read_bytes().replace(b"St Mary", b"St Marx", 1))
    with pytest.raises(LedgerError, match="not whole: entry 0"):
        report.write(out)
    assert not (tmp_path / "l.jsonl.report.html").exists()


@pytest.mark.parametrize("name", ["nothing", "a-text.txt", "a-folder"])
def test_what_is_no_source_is_refused(tmp_path, name):
    """A path that is neither run, ledger nor export is bad input, and the error says what was expected."""
    (tmp_path / "a-text.txt").write_text("hello")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(BadInputError, match="expected a run's folder"):
        report.write(tmp_path / name)


def test_a_run_whose_files_do_not_read_is_refused(tmp_path):
    """A plan that is no plan is bad input."""
    folder = folder_of(tmp_path / "run", "none")
    (folder / "plan.json").write_text("{}")
    with pytest.raises(BadInputError, match="expected the files of a run"):
        report.write(folder)


def test_the_page_lies_where_one_looks_for_it(tmp_path):
    """A run's page is in its folder, a ledger's beside it, or where --out says; an earlier one is replaced."""
    folder = folder_of(tmp_path / "run", "none")
    assert report.write(folder) == folder / "report.html"
    assert report.write(folder) == folder / "report.html"
    assert report.write(folder, out=tmp_path / "x.html") == tmp_path / "x.html"
    path = one_run(tmp_path / "l.db", charged=1)
    assert report.write(path) == tmp_path / "l.db.report.html"
    assert (tmp_path / "l.db.report.html").read_text().startswith("<!doctype html>")


def test_a_file_that_is_no_report_is_not_written_over(ledger, tmp_path):
    """A slip of the hand does not cost a ledger, nor does a folder that is not there crash."""
    before = ledger.read_bytes()
    with pytest.raises(BadInputError, match="an earlier report"):
        report.write(ledger, out=ledger)
    assert ledger.read_bytes() == before
    with pytest.raises(BadInputError, match="cannot be written"):
        report.write(ledger, out=tmp_path / "no" / "such" / "x.html")


def test_odds_by_hand():
    """The bounds at (ln 3, 0.1) are those worked out by hand."""
    pair = (1.0986122886681098, 0.1)  # e^epsilon = 3
    assert best_guess((pair,)) == pytest.approx((3 + 0.1) / 4)
    assert most_hits((pair,)) == pytest.approx(3 * 0.01 + 0.1)
    assert most_hits((pair,), 0.5) == pytest.approx(1 - (1 - 0.1 - 0.5) / 3)
    assert most_hits((pair, (0.0, 0.05))) == pytest.approx(0.01 + 0.05)
    assert best_guess(((float("inf"), 1e-5),)) == 1
    assert most_hits(((float("inf"), 1e-5),)) == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (report.up(2.38), "2.380"),
        (report.up(2.3800001), "2.381"),
        (report.up(float("inf")), "∞"),
        (report.down(1.7629), "1.762"),
        (report.percent_up(0.5), "50.00 %"),
        (report.percent_up(0.814201), "81.43 %"),
        (report.percent_up(0.9999748), "99.9975 %"),
        (report.percent_up(1.0), "100 %"),
        (report.small(1e-5), "10⁻⁵"),
        (report.small(0.0014301), "0.00144"),
        (report.one_in(1e-5), "1 in 100,000"),
        (report.count(12345), "12,345"),
    ],
)
def test_figures_are_rounded_against_us(written, expected):
    """What is spent goes up, what is left goes down, and 100 % is written for nothing less."""
    assert written == expected


def test_a_drawing_uses_the_colours_of_the_page():
    """No colour of a drawing is its own, so that dark screens and paper are followed; markers are not lost."""
    drawn = report_charts.over_rounds("x", lines={"a": ([1], [0.5])}, axis="<y>", top=None, label="<l>")
    assert "#0" not in re.sub(r'"#m[0-9a-f]+"', "", drawn)
    assert "var(--accent)" in drawn
    assert "&lt;l&gt;" in drawn
    used = set(re.findall(r'xlink:href="#([^"]+)"', drawn))
    assert used
    assert used <= set(re.findall(r' id="([^"]+)"', drawn))


def test_a_run_across_organisations_has_no_ledger_of_its_own(tmp_path):
    """The coordinator's folder says where the ledgers are; it makes no page without them."""
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BadInputError, match="got one across organisations, whose ledgers are with them"):
        report._ledger(tmp_path)
