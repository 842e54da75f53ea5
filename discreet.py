"""The command line: one verb per job; each verb imports its room when it is called.

Long, because it is nothing but the list of verbs and their options, and a list is read best in one place.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.commands import audited, identity, node, witnessed
from server.commands import consortium as consortium_verbs
from server.commands import link, runs, witness

app = typer.Typer(
    name="discreet",
    help="Federated learning whose privacy budget lives where the data lives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

ScenarioFile = Annotated[Path, typer.Argument(help="The scenario, a TOML file; `discreet init` writes one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a key of the scenario; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for scripts.")]


@app.command(epilog="Example: discreet init my-study && discreet simulate my-study/scenario.toml")
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write scenario.toml.")] = Path(),
) -> None:
    """Write a commented scenario to start from.

    It becomes DIR/scenario.toml; DIR is made where it is missing.
    """
    from simulations.scenario_files import write_starter

    path = write_starter(folder)
    typer.echo(f"Wrote {path}. Try: discreet plan {path}, then: discreet simulate {path}")


@app.command(epilog="Example: discreet simulate simulations/scenarios/digits.toml --set run.rounds=20 --seeds 3")
def simulate(
    scenario: Annotated[
        Path | None, typer.Argument(help="The scenario, a TOML file; with --resume it may be left out.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME-DATE.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the run of this folder.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run this many seeds and report mean and spread.")] = 1,
    ledger: Annotated[
        Path | None, typer.Option(help="A ledger that several runs share; made when new. Default: one a run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train across virtual clients on this machine.

    SCENARIO is a TOML file; `discreet init` writes one. With --resume it may be left out.
    """
    if scenario is None and resume is None:
        raise typer.BadParameter("Name a scenario, or a folder with --resume.")
    if resume is not None and (out or ledger or seeds > 1 or (scenario is None and overrides)):
        raise typer.BadParameter("--resume continues one run as it was: leave out --out, --ledger, --seeds and --set.")
    from common.config import load
    from simulations.engine import nursery

    given = load(scenario, overrides or ()) if scenario is not None else None
    if given is not None:
        nursery.prepare(given)  # its imports take seconds: they begin before everything else
    from simulations import campaign, progress

    with progress.watcher() as watcher:
        if resume is not None:
            results = campaign.resume(resume, given, watcher=watcher)
        elif given is not None:
            results = campaign.run(given, out=out, seeds=seeds, ledger=ledger, watcher=watcher)
    if as_json:
        typer.echo(json.dumps(campaign.to_json(results)))
    else:
        progress.show(results)
    campaign.refuse_stopped(results)


@app.command(epilog="Example: discreet plan simulations/scenarios/digits.toml --ledger owners.db --trade-off")
def plan(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Count what this ledger's accounts have spent; say what it would admit.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Ask two more accountants; takes some seconds.")] = False,
    trials: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Count this many runs on the same records, as of a sweep.")
    ] = None,
    trade_off: Annotated[
        bool, typer.Option("--trade-off", help="Compare more and fewer rounds, more and less noise.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw that too: a file .svg, .png or .pdf.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="For an owner: what the run would cost it under this policy, and its answer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a scenario will spend, and what is wrong with it, before anything runs.

    SCENARIO is a TOML file; `discreet init` writes one. Nothing is trained and no ledger is changed. With --policy, and
    --ledger for the past, it answers an owner: which epsilon, what is left, every objection, yes or no.
    """
    if policy is not None and (check or trials or trade_off or plot):
        raise typer.BadParameter("--policy answers one owner: leave out --check, --trials, --trade-off and --plot.")
    from common.config import load

    given = load(scenario, overrides or ())
    if policy is not None:
        from client import proposal_report

        answer = proposal_report.report(given, policy=policy, ledger=ledger)
        if as_json:
            typer.echo(json.dumps(answer))
        else:
            proposal_report.show(answer)
        return
    from simulations import planning

    report = planning.report(given, check=check, ledger=ledger, trials=trials, trade_off=trade_off, plot=plot)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        planning.show(report)


@app.command(
    epilog="Example: discreet epsilon --noise-multiplier 1.1 --sampling-rate 0.00427 --steps 14062 --delta 1e-5"
)
def epsilon(
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise in units of the clipping bound.")] = None,
    sampling_rate: Annotated[str | None, typer.Option(help="Poisson sampling rate, as 0.01 or 256/60000.")] = None,
    steps: Annotated[int | None, typer.Option(help="How many noisy steps.")] = None,
    segments: Annotated[
        Path | None, typer.Option(help="Instead: a JSON list of {noise_multiplier, sampling_rate, steps}.")
    ] = None,
    delta: Annotated[float, typer.Option(help="The delta of (epsilon, delta).")] = 1e-5,
    as_json: AsJson = False,
) -> None:
    """Compute epsilon of a history, by three accountants."""
    from simulations import epsilon_query

    history = epsilon_query.history(segments, noise_multiplier, sampling_rate, steps)
    verdict = epsilon_query.verdict(history, delta=delta)
    if as_json:
        typer.echo(json.dumps(verdict))
    else:
        epsilon_query.show_verdict(verdict)


@app.command(epilog="Example: discreet bench engine --json")
def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark.")] = "engine",
    repeats: Annotated[
        int | None, typer.Option(min=1, help="How often the contestants alternate; each benchmark knows how often.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for NAME.csv and NAME.png.")] = Path("runs/bench"),
    as_json: AsJson = False,
) -> None:
    """Time the hot path: contestants take turns within one call, and their ratios stand beside the targets.

    NAME is `engine`, `dp-step`, `growth`, `stacking`, `startup`, `aggregation`, `peers` (after
    `make peers`) or `ledger`.
    """
    from simulations.bench import catalogue

    figures, turns = catalogue.run(name, repeats=repeats)
    catalogue.save(name, figures, out)
    if as_json:
        typer.echo(json.dumps(catalogue.to_json(name, figures, repeats=turns)))
    else:
        catalogue.show(name, figures, repeats=turns)


@app.command(epilog="Example: discreet audit simulations/scenarios/digits.toml")
def audit(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    canaries: Annotated[int, typer.Option(min=2, help="How many canaries; more find less.")] = 1_000,
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME-audit-DATE.")] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="A ledger in which the verdict is noted too, on all its accounts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack the training of a scenario: does the claimed epsilon survive?

    The real trainer is run on canaries, rows whose gradients are known, and whoever sees every update guesses which of
    them were in. Exit code 1 when the claim is refuted. No private data are read.
    """
    from common.config import load
    from simulations.engine import nursery

    given = load(scenario, overrides or ())
    nursery.prepare(given)
    from simulations import progress
    from simulations.audit import audit as audits
    from simulations.audit.show import show

    with progress.watcher() as watcher:
        made = audits.audit(given, canaries=canaries, out=out, ledger=ledger, watcher=watcher)
    if as_json:
        typer.echo(json.dumps(made.to_json()))
    else:
        show(made)
    if made.findings.is_refuted:
        raise typer.Exit(1)


@app.command(epilog="Example: discreet attack simulations/scenarios/digits.toml --out attack.html")
def attack(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    shadows: Annotated[
        int, typer.Option(min=2, help="Shadow models that help to attack each model; more take longer.")
    ] = 8,
    out: Annotated[Path | None, typer.Option(help="The page; default runs/NAME-attack-DATE.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what an attacker sees of a model and of an update: an illustration, never a verification.

    Models of random halves of the records are trained and attacked, as they are and with the noise left out, and
    pictures are made from single updates. Finding nothing proves nothing; `discreet audit` can refute a claim. Only for
    data that are public: models without noise are made of them, and no ledger is charged.
    """
    from common.config import load

    given = load(scenario, overrides or ())
    from simulations.attack import page, stages

    with stages.shown() as stage:
        findings, path = page.make(given, shadows=shadows, out=out, stage=stage)
    if as_json:
        typer.echo(json.dumps(findings.to_json() | {"page": str(path)}))
    else:
        page.show(findings, path)


@app.command(epilog="Example: discreet report runs/digits-20261122-080000 --out digits.html")
def report(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_LEDGER", help="A run's folder, a ledger or an export.")],
    out: Annotated[Path | None, typer.Option(help="The page; default report.html in the run's folder.")] = None,
) -> None:
    """Write one page for people: what was spent on whose data, what is left, and what it means.

    RUN_OR_LEDGER is a run's folder, a ledger's file, or an export of one.
    """
    from simulations import report as reports

    typer.echo(f"Wrote {reports.write(source, out=out)}.")


ledgers = typer.Typer(help="Look at a ledger, verify it, export it.", no_args_is_help=True)
app.add_typer(ledgers, name="ledger")
LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER_OR_EXPORT", help="A ledger's file or an export of it.")]


@ledgers.command("new", epilog="Example: discreet ledger new cardiology.db")
def ledger_new(ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="A file that is not there yet.")]) -> None:
    """Make an empty ledger and its keys: LEDGER, LEDGER.key (private) and LEDGER.pub."""
    from contextlib import closing

    from common.ledger import Ledger
    from common.transparency.database import key_files

    with closing(Ledger.create(ledger)) as made:
        typer.echo(f"Wrote {ledger}. Its private key is {key_files(ledger)[0]}: keep it secret, and put a copy away.")
        typer.echo(f"Those who verify need this line: {made.key}")


@ledgers.command("show", epilog="Example: discreet ledger show runs/digits-20261122-080000/ledger.db")
def ledger_show(
    ledger: LedgerFile,
    entries: Annotated[int, typer.Option(min=0, help="Also list the last entries.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what each account has spent and may still spend."""
    from client import ledger_views as views

    table = views.shown(ledger, entries=entries)
    if as_json:
        typer.echo(json.dumps(table))
    else:
        views.show(table)


@ledgers.command("verify", epilog="Example: discreet ledger verify cardiology.jsonl --key cardiology.db.pub")
def ledger_verify(
    ledger: LedgerFile,
    key: Annotated[Path | None, typer.Option(help="The owner's public key; without it the signer is unknown.")] = None,
    extends: Annotated[Path | None, typer.Option(help="A checkpoint seen earlier, which it must continue.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every hash, signature and rule, and that it adds up; exit code 1 names what is wrong."""
    from client import ledger_views as views

    table = views.verified(ledger, key=key, extends=extends)
    if as_json:
        typer.echo(json.dumps(table))
    else:
        views.show_verified(table)


@ledgers.command("export", epilog="Example: discreet ledger export cardiology.db --out cardiology.jsonl")
def ledger_export(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger's file.")],
    out: Annotated[Path, typer.Option(help="Where to write the lines of JSON.")],
) -> None:
    """Write a ledger as lines of JSON, for those who are to check it."""
    from common.transparency import export

    export.write(ledger, out)
    typer.echo(f"Wrote {out}. Whoever gets it can check it: discreet ledger verify {out}")


@ledgers.command("close", epilog="Example: discreet ledger close cardiology.db 3f1c09aa")
def ledger_close(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger's file.")],
    run: Annotated[str, typer.Argument(help="The run's identifier, or how it begins.")],
) -> None:
    """Close a run that will not go on: what it reserved and did not use is free again, what it spent stays spent."""
    from client import ledger_views as views

    typer.echo(views.closed(ledger, run))


@ledgers.command("proof", epilog="Example: discreet ledger proof cardiology.jsonl --entry 17")
def ledger_proof(
    ledger: LedgerFile,
    entry: Annotated[int | None, typer.Option(help="Prove that this entry is in the ledger.")] = None,
    since: Annotated[int | None, typer.Option(help="Prove that it begins with its first SINCE entries.")] = None,
) -> None:
    """Print an inclusion or a consistency proof (RFC 6962) with the signed checkpoint it leads to, as JSON."""
    from client import ledger_views as views

    typer.echo(json.dumps(views.proof(ledger, entry=entry, since=since), indent=1, ensure_ascii=False))


policies = typer.Typer(help="An owner's policy.", no_args_is_help=True)
app.add_typer(policies, name="policy")


@policies.command("check", epilog="Example: discreet policy check policy.toml")
def policy_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy, a TOML file.")], as_json: AsJson = False
) -> None:
    """Read a policy as a client would, and say in words what it allows."""
    from client import policy

    checked = policy.load(file)
    typer.echo(json.dumps(policy.describe(checked)) if as_json else "\n".join(policy.in_words(checked)))


@policies.command("init", epilog="Example: discreet policy init --owner 'St Mary' > policy.toml")
def policy_init(owner: Annotated[str, typer.Option(help="Who owns the data.")]) -> None:
    """Print a commented policy to start from."""
    from client import policy

    typer.echo(policy.starter(owner), nl=False)


ConsortiumFolder = Annotated[Path, typer.Option(help="The consortium's folder, whose link runs on this machine.")]


@app.command(epilog="Example: discreet run scenario.toml --consortium consortium --set 'run.purpose=Early diagnosis'")
def run(
    scenario: Annotated[Path | None, typer.Argument(help="The scenario, a TOML file; left out with --resume.")] = None,
    overrides: Overrides = None,
    consortium: ConsortiumFolder = Path("consortium"),
    out: Annotated[Path | None, typer.Option(help="The run's folder; default runs/NAME-DATE.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the run of this folder.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for organisations to answer or approve.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Train across the organisations of a consortium.

    SCENARIO is a TOML file whose run.purpose says what the run is for. Exit code 1: the run failed, or every
    organisation refused.
    """
    if (scenario is None) == (resume is None) or (resume is not None and (out or overrides)):
        raise typer.BadParameter("Name a scenario, or with --resume the folder of a run and nothing else of it.")
    from common.config import load
    from server.coordinator import deployment, outcome
    from simulations import datasets, progress
    from simulations.trials import summary

    given = load(scenario, overrides or ()) if scenario is not None else deployment.scenario_in(resume or Path())
    test = datasets.public_test(given)
    with progress.watcher() as watcher:
        coordinator = deployment.Coordinator(folder=consortium, watcher=watcher, wait_s=wait)
        if resume is not None:
            result = deployment.resume(coordinator, resume, test=test)
        else:
            result = deployment.run(coordinator, given, test=test, out=out)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        summary.show_run(result)
    outcome.refuse_unsuccessful(result)


@app.command(epilog="Example: discreet trial simulations/scenarios/digits.toml --organisations 3 --set run.rounds=3")
def trial(
    scenario: ScenarioFile,
    organisations: Annotated[int, typer.Option(min=1, max=20, help="How many organisations take part.")] = 3,
    overrides: Overrides = None,
    keep: Annotated[Path | None, typer.Option(help="Keep everything in this new folder, to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """Try a deployment on this machine: a link, a witness and organisations as real processes on loopback.

    A consortium is made in a temporary folder, a run of SCENARIO goes through it, and all of it is taken down.
    """
    from simulations.trials import summary
    from simulations.trials import trial as trials

    result = trials.hold(scenario, organisations, overrides=overrides or (), keep=keep)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        summary.show(result)


for verbs in (consortium_verbs, audited, identity, link, node, runs, witness, witnessed):  # each room has its own
    verbs.mount(app)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed or refused, 2 bad input."""
    try:
        app()
    except Exception as error:
        from common.errors import DiscreetError  # with numpy: not before it is needed

        if not isinstance(error, DiscreetError):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
