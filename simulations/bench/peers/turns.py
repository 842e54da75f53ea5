"""How a peer takes turns with the other contestants.

It says `ready`. For each line with a number of rounds it runs one round that does not count and then that many, and
answers with one line of JSON. When its input ends it stops. Between turns it waits, and uses no core.

    turns = Turns(clients=100)
    while turns.wait():
        one_round()
"""

import json
import os
import sys
import time


class Turns:
    """The peer's side of the conversation, called before each round."""

    def __init__(self, *, clients: int) -> None:
        """Keep stdout for answers: what a framework prints goes to stderr."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._clients = clients
        self._wanted = self._left = 0
        self._started = 0.0

    def wait(self) -> bool:
        """Return True when the next round is to be run, False when there is none."""
        self._left -= 1
        if self._left > 0:
            if self._left == self._wanted:  # the round that does not count is over
                self._started = time.perf_counter()
            return True
        if self._wanted:
            seconds = time.perf_counter() - self._started
            self._say(json.dumps({"clients_per_second": self._clients * self._wanted / seconds}))
        else:
            self._say("ready")
        line = sys.stdin.readline()
        if line:
            self._wanted = int(line)
            self._left = self._wanted + 1
        return bool(line)

    def _say(self, line: str) -> None:
        print(line, file=self._answers, flush=True)
