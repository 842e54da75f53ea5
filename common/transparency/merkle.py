"""Merkle trees: one hash for a whole log, and short proofs about it.

A log of n entries has the root of a binary tree over the hashes of its entries. An inclusion proof shows that an entry
is in it; a consistency proof shows that a longer log begins with all of a shorter one.

Source: RFC 6962, section 2.1, https://www.rfc-editor.org/rfc/rfc6962; the checks of proofs are RFC 9162's, section 2.1.
"""

from collections.abc import Sequence
from hashlib import sha256

Hash = bytes
Proof = tuple[Hash, ...]

EMPTY: Hash = sha256(b"").digest()


def leaf_hash(entry: bytes) -> Hash:
    """Return the hash of an entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: Hash, right: Hash) -> Hash:
    """Return the hash of a node; its first byte keeps it from being mistaken for an entry's."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree, of which only the roots of its full subtrees are kept: one hash a bit of its size.

    Guarantees:
        `root` equals the root of the tree over all leaves appended so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[Hash] = []

    def append(self, leaf: Hash) -> None:
        """Add a leaf's hash; a full subtree is merged with its equal neighbour."""
        size, node = self.size, leaf
        while size & 1:
            node = node_hash(self._peaks.pop(), node)
            size >>= 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> Hash:
        """Return the root over all leaves so far."""
        if not self._peaks:
            return EMPTY
        *rest, node = self._peaks
        for peak in reversed(rest):
            node = node_hash(peak, node)
        return node


def root_of(leaves: Sequence[Hash]) -> Hash:
    """Return the root over some leaves."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(leaves: Sequence[Hash], index: int) -> Proof:
    """Return the proof that leaf `index` is in the tree over `leaves`; IndexError when it is not."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"index: expected 0 to {len(leaves) - 1}, got {index}")
    if len(leaves) == 1:
        return ()
    split = _split(len(leaves))
    if index < split:
        return (*inclusion_proof(leaves[:split], index), root_of(leaves[split:]))
    return (*inclusion_proof(leaves[split:], index - split), root_of(leaves[:split]))


def is_included(leaf: Hash, *, index: int, size: int, root: Hash, proof: Proof) -> bool:
    """Whether `proof` shows that `leaf` is entry `index` of the log with `size` entries and this root."""
    if not 0 <= index < size:
        return False
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and node == root


def consistency_proof(leaves: Sequence[Hash], old_size: int) -> Proof:
    """Return the proof that the tree over `leaves` begins with its first `old_size` leaves."""
    if not 0 <= old_size <= len(leaves):
        raise IndexError(f"old_size: expected 0 to {len(leaves)}, got {old_size}")
    return () if old_size in {0, len(leaves)} else _subproof(leaves, old_size, is_whole=True)


def _subproof(leaves: Sequence[Hash], old_size: int, *, is_whole: bool) -> Proof:
    if old_size == len(leaves):
        return () if is_whole else (root_of(leaves),)
    split = _split(len(leaves))
    if old_size <= split:
        return (*_subproof(leaves[:split], old_size, is_whole=is_whole), root_of(leaves[split:]))
    return (*_subproof(leaves[split:], old_size - split, is_whole=False), root_of(leaves[:split]))


def is_consistent(*, old_size: int, old_root: Hash, size: int, root: Hash, proof: Proof) -> bool:
    """Whether `proof` shows that the log with `size` entries begins with the one of `old_size` entries."""
    if not 0 <= old_size <= size:
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY
    if old_size == size:
        return not proof and old_root == root
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old, new = path[0], path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old == old_root and new == root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)
