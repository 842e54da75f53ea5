"""The one source of secret randomness: noise, private batches and private cohorts.

A key stream of AES-256 in counter mode under a key drawn from the operating system. Each order (and each round at the
server) draws a key of its own, inside the process that uses it: nothing is inherited through a fork, nothing comes
from a run's seed, and two workers never share a stream.
"""

import os
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_NONCE_BYTES = 16
_TWO_PI = 2.0 * np.pi


class Entropy:
    """A stream of secret random numbers.

    Guarantees:
        Two streams never agree: each has its own 256-bit key from `os.urandom`.
        A stream crosses no process: it cannot be pickled.
        `bernoulli` includes each position independently with the exact probability floor(p * 2^64) / 2^64, never more
        than p.

    Source: Box and Muller 1958 for `normal`; NIST SP 800-38A, section 6.5, for the counter mode.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """Open a stream; a key is given by tests only."""
        secret = os.urandom(KEY_BYTES) if key is None else key
        self._process = os.getpid()
        self._stream = Cipher(algorithms.AES(secret), modes.CTR(bytes(_NONCE_BYTES))).encryptor()

    def __reduce__(self) -> str:
        raise TypeError("Secret randomness crosses no process: open an Entropy where it is used.")

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Draw `count` uniform 64-bit words; RuntimeError in a forked child, which would repeat its parent's."""
        if os.getpid() != self._process:
            raise RuntimeError("Secret randomness crosses no process: open an Entropy where it is used.")
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def bernoulli(self, count: int, *, probability: Fraction) -> npt.NDArray[np.intp]:
        """Draw which of `count` positions are in, each independently: the increasing positions."""
        if probability >= 1:
            return np.arange(count)
        threshold = np.uint64(probability.numerator * 2**64 // probability.denominator)
        return np.flatnonzero(self.words(count) < threshold)

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """Draw `count` standard normal numbers in double precision, out to 8.5 standard deviations."""
        import torch  # its sine and cosine take a third of numpy's time

        half = (count + 1) // 2
        uniform = (self.words(2 * half) >> np.uint64(11)).astype(np.float64)  # 53 bits each
        radius, angle = uniform[:half], uniform[half:]
        radius += 1.0  # in (0, 1] once it is scaled, so that the logarithm is finite
        radius *= 2.0**-53
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle *= 2.0**-53 * _TWO_PI
        numbers = np.empty(2 * half)
        for part, function in ((numbers[:half], torch.cos), (numbers[half:], torch.sin)):
            function(torch.from_numpy(angle), out=torch.from_numpy(part))
            np.multiply(part, radius, out=part)
        return numbers[:count]

    def seed(self) -> int:
        """Draw a seed for a generator of a library, where its numbers must not follow from the run's seed."""
        return int(self.words(1)[0] >> np.uint64(1))
