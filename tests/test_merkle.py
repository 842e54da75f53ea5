"""Merkle trees: the roots and proofs of RFC 6962, and nothing that is not true can be proved."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.transparency.merkle import (
    EMPTY,
    Frontier,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    root_of,
)

# The reference tree of Certificate Transparency (google/certificate-transparency, merkletree): entries, roots, proofs.
ENTRIES = [
    bytes.fromhex(entry)
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    0: [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    5: [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
CONSISTENCY = {
    (1, 8): INCLUSION[0],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
MANY = [leaf_hash(number.to_bytes(2, "big")) for number in range(80)]

sizes = st.integers(1, len(MANY))


def from_hex(proof):
    """The bytes of a published proof."""
    return tuple(bytes.fromhex(node) for node in proof)


def flipped(node, bit):
    """A hash with one bit changed."""
    data = bytearray(node)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(data)


def spoilt(proof, place, bit):
    """Every way in which one step can spoil a proof: a bit, a node missing, doubled or added."""
    yield (*proof, MANY[0])
    yield (MANY[0], *proof)
    if proof:
        here = place % len(proof)
        yield (*proof[:here], flipped(proof[here], bit), *proof[here + 1 :])
        yield (*proof[:here], *proof[here + 1 :])
        yield (*proof[: here + 1], *proof[here:])
    if len(proof) > 1:
        yield tuple(reversed(proof))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_that_certificate_transparency_published(size):
    """The roots over the first 0 to 8 reference entries."""
    assert root_of(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize("index", INCLUSION)
def test_inclusion_proofs_are_those_that_were_published(index):
    """The reference proofs are made, and verify."""
    proof = inclusion_proof(LEAVES, index)
    assert proof == from_hex(INCLUSION[index])
    assert is_included(LEAVES[index], index=index, size=8, root=bytes.fromhex(ROOTS[8]), proof=proof)


@pytest.mark.parametrize(("old_size", "size"), CONSISTENCY)
def test_consistency_proofs_are_those_that_were_published(old_size, size):
    """The reference proofs are made, and verify."""
    proof = consistency_proof(LEAVES[:size], old_size)
    assert proof == from_hex(CONSISTENCY[old_size, size])
    old_root, root = bytes.fromhex(ROOTS[old_size]), bytes.fromhex(ROOTS[size])
    assert is_consistent(old_size=old_size, old_root=old_root, size=size, root=root, proof=proof)


def test_a_node_is_never_mistaken_for_an_entry():
    """Leaves and nodes are hashed under different first bytes: an entry cannot pose as a subtree."""
    left, right = LEAVES[:2]
    assert leaf_hash(left + right) != node_hash(left, right) == root_of(LEAVES[:2])
    assert leaf_hash(b"") == sha256(b"\x00").digest() != EMPTY == sha256(b"").digest()


def test_three_leaves_split_at_the_power_of_two():
    """Three leaves are a pair and one: H(H(a, b), c), not the other way round."""
    a, b, c = LEAVES[:3]
    assert root_of([a, b, c]) == node_hash(node_hash(a, b), c)


def test_a_growing_tree_has_every_root_on_the_way():
    """A frontier gives, after each leaf, the root that the definition of RFC 6962 gives."""

    def by_definition(leaves):
        if len(leaves) == 1:
            return leaves[0]
        split = max(2**bit for bit in range(7) if 2**bit < len(leaves))
        return node_hash(by_definition(leaves[:split]), by_definition(leaves[split:]))

    frontier = Frontier()
    assert frontier.root() == EMPTY
    for size, leaf in enumerate(MANY, 1):
        frontier.append(leaf)
        assert (frontier.size, frontier.root()) == (size, by_definition(MANY[:size]))


@given(entries=st.lists(st.binary(max_size=8), min_size=1, max_size=40), data=st.data())
def test_every_entry_has_a_proof_that_verifies(entries, data):
    """Whatever the entries are, equal ones included."""
    leaves = [leaf_hash(entry) for entry in entries]
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = inclusion_proof(leaves, index)
    assert is_included(leaves[index], index=index, size=len(leaves), root=root_of(leaves), proof=proof)


@given(size=sizes, data=st.data(), place=st.integers(0), bit=st.integers(0, 255))
def test_a_spoilt_inclusion_proof_does_not_verify(size, data, place, bit):
    """One bit of leaf, root or proof, another index, or a node more or less: refused."""
    index = data.draw(st.integers(0, size - 1))
    leaf, root, proof = MANY[index], root_of(MANY[:size]), inclusion_proof(MANY[:size], index)
    assert not is_included(flipped(leaf, bit), index=index, size=size, root=root, proof=proof)
    assert not is_included(leaf, index=index, size=size, root=flipped(root, bit), proof=proof)
    for other in spoilt(proof, place, bit):
        assert other == proof or not is_included(leaf, index=index, size=size, root=root, proof=other)
    for other_index in range(-1, size + 2):
        is_same = other_index == index
        assert is_included(leaf, index=other_index, size=size, root=root, proof=proof) == is_same


@given(size=sizes, other_size=sizes, data=st.data())
def test_an_inclusion_proof_is_for_one_checkpoint(size, other_size, data):
    """With size and root of another checkpoint it does not verify; a size alone says nothing without its root."""
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(MANY[:size], index)
    other = root_of(MANY[:other_size])
    assert is_included(MANY[index], index=index, size=other_size, root=other, proof=proof) == (size == other_size)


@pytest.mark.parametrize("size", [0, -1, 3])
def test_an_entry_beyond_the_log_is_not_in_it(size):
    """Index 3 is no entry of a log of three."""
    assert not is_included(LEAVES[3], index=3, size=size, root=LEAVES[3], proof=())


@pytest.mark.parametrize(("leaves", "index"), [([], 0), (LEAVES, 8), (LEAVES, -1)])
def test_there_is_no_proof_of_an_entry_that_is_not_there(leaves, index):
    """Asking for one raises IndexError, negative indices too."""
    with pytest.raises(IndexError, match="index: expected 0 to"):
        inclusion_proof(leaves, index)


@given(size=sizes, data=st.data())
def test_every_earlier_size_has_a_proof_that_verifies(size, data):
    """From nothing up to the size itself."""
    old_size = data.draw(st.integers(0, size))
    proof = consistency_proof(MANY[:size], old_size)
    old_root, root = root_of(MANY[:old_size]), root_of(MANY[:size])
    assert is_consistent(old_size=old_size, old_root=old_root, size=size, root=root, proof=proof)


@given(size=sizes, data=st.data(), place=st.integers(0), bit=st.integers(0, 255))
def test_a_spoilt_consistency_proof_does_not_verify(size, data, place, bit):
    """One bit of either root or of the proof, another old size, or a node more or less: refused."""
    old_size = data.draw(st.integers(0, size))
    old_root, root = root_of(MANY[:old_size]), root_of(MANY[:size])
    proof = consistency_proof(MANY[:size], old_size)

    def holds(**changes: object):
        true = {"old_size": old_size, "old_root": old_root, "size": size, "root": root, "proof": proof}
        return is_consistent(**(true | changes))

    assert not holds(old_root=flipped(old_root, bit))
    assert old_size == 0 or not holds(root=flipped(root, bit))  # every log begins with nothing
    for other in spoilt(proof, place, bit):
        assert other == proof or not holds(proof=other)
    for other_size in range(-1, size + 2):
        assert holds(old_size=other_size) == (other_size == old_size)


@given(size=sizes, data=st.data())
def test_a_fork_has_no_proof(size, data):
    """A log in which one of the old entries is another one does not continue the old log, by its own honest proof."""
    old_size = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, old_size - 1))
    fork = [*MANY[:changed], leaf_hash(b"another entry"), *MANY[changed + 1 : size]]
    true = {"old_size": old_size, "old_root": root_of(MANY[:old_size]), "size": size}
    assert not is_consistent(**true, root=root_of(fork), proof=consistency_proof(fork, old_size))
    assert not is_consistent(**true, root=root_of(fork), proof=consistency_proof(MANY[:size], old_size))


def test_a_longer_log_is_not_the_beginning_of_a_shorter_one():
    """Rolled back: no proof, the empty one included, shows it."""
    eight, five = root_of(LEAVES), root_of(LEAVES[:5])
    for proof in ((), consistency_proof(LEAVES, 5)):
        assert not is_consistent(old_size=8, old_root=eight, size=5, root=five, proof=proof)
    assert not is_consistent(old_size=8, old_root=eight, size=8, root=five, proof=())


@pytest.mark.parametrize("old_size", [-1, 9])
def test_there_is_no_proof_of_a_size_that_never_was(old_size):
    """Asking for one raises IndexError."""
    with pytest.raises(IndexError, match="old_size: expected 0 to 8"):
        consistency_proof(LEAVES, old_size)
