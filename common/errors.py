"""The errors of Discreet.

    DiscreetError                exit code 1: failed, refused or not verified
    ├── BadInputError            exit code 2: the user's input; nothing was written
    │   ├── ScenarioError        a scenario file or an override
    │   ├── DataMissingError     a data set that is not where it was expected
    │   ├── ModelRefusedError    a model that cannot be trained privately
    │   ├── PolicyError          an owner's policy file
    │   ├── ConsortiumError      an identity, a certificate or a roster that is not valid
    │   └── SettingsError        a node's settings, or the description of its data
    ├── AccountingError          accountants that disagree, or cannot answer
    ├── PlanRefusedError         a plan that spends more than the budget allows
    ├── LedgerError              a ledger that is not whole, or cannot be written
    ├── WireError                a malformed message from the other side
    ├── WitnessError             a witness that will not cosign
    │   ├── WitnessDownError     it does not answer
    │   ├── RolledBackError      it has seen more of the ledger than there is: an older copy was restored
    │   └── ForkedError          it has seen another past of the ledger
    ├── LinkError                a link that cannot be reached, or started
    ├── JournalError             a node's memory cannot be read or written: a restart may mend it
    ├── RefusedError             an order that this client will not carry out
    └── RunFailedError           a run that stopped; its folder can be resumed
        └── BudgetSpentError     a run that stopped because its budgets are spent; its model so far is saved

A message gives what was expected, what was got, and what to do. No message holds private data.
"""

from common.messages import Refusal


class DiscreetError(Exception):
    """Anything that Discreet raises on purpose."""

    exit_code = 1


class BadInputError(DiscreetError):
    """What the user gave cannot be used."""

    exit_code = 2


class ScenarioError(BadInputError):
    """A scenario file or an override is wrong."""


class DataMissingError(BadInputError):
    """A data set is not where it was expected, or is not what it should be."""


class ModelRefusedError(BadInputError):
    """A model mixes samples or keeps buffers, so that its training cannot be private."""


class PolicyError(BadInputError):
    """An owner's policy file is missing, unreadable, of a newer version, or says something impossible."""


class ConsortiumError(BadInputError):
    """An identity, a certificate or a roster is missing, expired, revoked, or not signed by those who must."""


class SettingsError(BadInputError):
    """A node's settings or the description of its data are wrong."""


class AccountingError(DiscreetError):
    """The accountants disagree or cannot answer: no epsilon is reported."""


class PlanRefusedError(DiscreetError):
    """The plan would spend more than the budget allows."""


class LedgerError(DiscreetError):
    """A ledger is missing, not whole, of a newer version, or cannot be written: nothing is trained."""


class WireError(DiscreetError):
    """A message from outside is malformed."""


class RunFailedError(DiscreetError):
    """The run stopped before its end. Its last checkpoint is whole."""


class BudgetSpentError(RunFailedError):
    """Nobody who was asked may train any more: the budgets are spent. The model of the last whole round is saved."""


class WitnessError(DiscreetError):
    """The witness does not cosign the ledger: nothing is trained."""


class WitnessDownError(WitnessError):
    """The witness cannot be reached, or not in time; it may be asked again."""


class RolledBackError(WitnessError):
    """The ledger is an older copy of what the witness has cosigned."""


class ForkedError(WitnessError):
    """The ledger's past is not the one that the witness has cosigned."""


class LinkError(DiscreetError):
    """The link cannot be started or reached."""


class JournalError(DiscreetError):
    """A node's journal cannot be read or written: nothing is trained without it."""


class RefusedError(DiscreetError):
    """This client does not carry out the order.

    Only `word` leaves the client; the text of the error stays in the owner's log.
    """

    def __init__(self, word: Refusal, detail: str = "") -> None:
        super().__init__(f"{word.value}: {detail}" if detail else word.value)
        self.word, self.detail = word, detail
