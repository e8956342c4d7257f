r"""What can be said of recall without training: counting, noise in a sum, lookup by construction.

    facts_bits, table_bits     bits that any memory of facts needs, and that a table gets by with
    best_accuracy              what no memory of so many bits exceeds
    copying_accuracy           the same for strings said again whole
    outer products             interference, and what survives it, in closed form
    found_by_hash, bucket_size what hashing finds, and what it finds besides
    exact_lookup, fetch        attention that looks things up, weights set by hand
    attention_map, induction_score   where a trained layer looks, and how like an induction head

Facts are pairs of a key and one of `values` values, drawn evenly and independently of each other.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmlib.attention import attention, rotate
from ssmlib.mixers.attention import Attention
from ssmlib.shapes import check, check_number


def facts_bits(facts: int, values: int) -> float:
    """facts log2(values): with fewer, some two lists of values for the same keys look the same.

    Every list must lead to a state of its own, or one of the two is answered wrongly somewhere.
    """
    check_number(low=0, whole=True, facts=facts)
    check_number(low=1, whole=True, values=values)
    return facts * math.log2(values)


def table_bits(facts: int, keys: int, values: int) -> float:
    """log2 of the number of ways to give `facts` of `keys` keys a value: a list of them.

    More than `facts_bits` by the choice of the keys, which a memory that is asked for no other need
    not keep. Raises ValueError for more facts than keys.
    """
    check_number(low=0, high=keys, whole=True, facts=facts)
    choices = math.lgamma(keys + 1) - math.lgamma(facts + 1) - math.lgamma(keys - facts + 1)
    return choices / math.log(2) + facts_bits(facts, values)


def best_accuracy(bits: float, facts: int, values: int) -> float:
    """The share of facts that no memory of so many bits gets right beyond, on average.

    Shannon's distortion-rate function of an even source under Hamming distance: the error e solves
    log2 V - H(e) - e log2(V - 1) = bits / facts, V the number of values; at 0 bits it is that of a
    guess, 1 - 1 / V. Cover and Thomas 2006, chapter 10.
    """
    check_number(low=0, bits=bits)
    check_number(low=1, whole=True, facts=facts)
    check_number(low=2, whole=True, values=values)
    low, high = 0.0, 1 - 1 / values
    for _ in range(100):
        middle = (low + high) / 2
        if _rate(middle, values) > bits / facts:
            low = middle
        else:
            high = middle
    return 1 - high


def copying_accuracy(bits: float, length: int, letters: int) -> float:
    """How many of all strings a memory of so many bits can say again without a mistake, at most.

    2^bits states lead to no more than as many strings of letters^length. Jelassi et al. 2024,
    section 2.
    """
    check_number(low=0, bits=bits)
    check_number(low=1, whole=True, length=length, letters=letters)
    return min(1.0, 2.0 ** max(bits - length * math.log2(letters), -1000.0))


def interference(facts: int, k: int, age: int = 0, decay: float = 1.0) -> float:
    """The mean squared error that other facts add to one read from S = Σ decay^i k_i v_iᵀ.

    Keys and values are drawn anew, even over the directions of k and any number of dimensions, of
    length 1. Fact i is i steps old, and the one of `age` is asked, its own weight undone:
    Σ_{i ≠ age} decay^(2 (i - age)) / k, exactly; (facts - 1) / k without decay.
    """
    check_number(low=1, whole=True, facts=facts, k=k)
    check_number(low=0, high=facts - 1, whole=True, age=age)
    check_number(low=1e-9, high=1, decay=decay)
    return sum(decay ** (2 * (i - age)) for i in range(facts) if i != age) / k


def least_squares_error(facts: int, k: int) -> float:
    """The same for the matrix that fits all facts best: max(0, 1 - k / facts).

    It is what erasing before writing comes to if facts are gone through again and again: there is
    no error up to k facts, where a sum already has one of nearly 1.
    """
    check_number(low=1, whole=True, facts=facts, k=k)
    return max(0.0, 1 - k / facts)


def outer_product_accuracy(facts: int, k: int, v: int, values: int) -> float:
    """How often the nearest of `values` codes is the right one, read from S = Σ k_i v_iᵀ.

    Codes are fixed, random, of v dimensions and length 1; keys as in `interference`; the facts have
    different values. Let s, normal with mean 1 and variance σ² = (facts - 1) / (k v), be the score
    of the right code, ρ its product with another code, and c that of the two keys, or 0 where no
    fact has that code. The other's score is then ρ s + (1 - ρ²) c plus normal noise of variance
    (1 - ρ²) σ². Scores are taken for independent, given s, and all reads for equally noisy, which
    makes it too low: by up to 0.07 with 8 to 32 dimensions, by 0.03 with 64.
    Raises ValueError for less than 4 dimensions, or fewer values than facts.
    """
    check_number(low=1, whole=True, facts=facts)
    check_number(low=4, whole=True, k=k, v=v)
    check_number(low=facts, whole=True, values=values)
    at = torch.linspace(-5, 5, 101, dtype=torch.float64)
    chance = torch.exp(-at.square() / 2)
    sigma = math.sqrt(max(facts - 1, 1e-12) / (k * v))
    right = 1 + sigma * at
    (code, code_odds), (key, key_odds) = _cosines(v), _cosines(k)

    def below(pull: Tensor) -> Tensor:
        """The right score is above another one's: for each s, ρ and c of `pull`."""
        margin = right[:, None, None] - (1 + code[:, None]) * pull
        scale = ((1 - code) / (1 + code)).sqrt()[:, None] / sigma
        return torch.einsum("src,r->sc", torch.special.ndtr(scale * margin), code_odds)

    free, stored = below(torch.zeros_like(key[:1]))[:, 0], below(key) @ key_odds
    wins = stored ** (facts - 1) * free ** (values - facts)
    return ((chance * wins).sum() / chance.sum()).item()


def found_by_hash(angle: float, planes: int, rounds: int = 1) -> float:
    """How often a key is in a bucket of the query, at an angle between the two: 0 ... π.

    1 - (1 - (1 - angle / π)^planes)^rounds, over planes drawn in any direction (Charikar 2002).
    """
    check_number(low=0, high=math.pi, angle=angle)
    check_number(low=1, whole=True, planes=planes, rounds=rounds)
    return 1 - (1 - (1 - angle / math.pi) ** planes) ** rounds


def bucket_size(keys: int, planes: int, k: int) -> float:
    """How many of `keys` random directions of k dimensions share a query's bucket, on average.

    More than keys / 2^planes, for those that are near by chance share all the planes.
    Raises ValueError for less than 4 dimensions.
    """
    check_number(low=1, whole=True, keys=keys, planes=planes)
    check_number(low=4, whole=True, k=k)
    cosine, odds = _cosines(k)
    return keys * ((1 - cosine.acos() / math.pi) ** planes @ odds).item()


def exact_lookup(tokens: Tensor, vocab: int, sharpness: float = 60.0) -> Tensor:
    """Logits (b t vocab) of an induction head with weights set by hand, for tokens (b t).

    Each token is its own query; its key is the token before it, which a shift by one provides, and
    its value is itself: what followed the like of me? One layer of attention and a convolution of
    two taps, at any length, for any number of pairs. Where several followed, all are named alike;
    where none did, nothing more than another.
    Raises ValueError for tokens that are not of the vocabulary.
    """
    check(tokens=(tokens, "b t"))
    check_number(low=int(tokens.max()) + 1, whole=True, vocab=vocab)
    codes = F.one_hot(tokens, vocab).to(torch.float64)[:, :, None]
    before = F.pad(codes, (0, 0, 0, 0, 1, 0))[:, :-1]
    return sharpness * attention(sharpness * math.sqrt(vocab) * codes, before, codes)[:, :, 0]


def fetch(x: Tensor, place: int, sharpness: float = 60.0) -> Tensor:
    """x (b t d) at one place, (b d), by attention: every position is a key, `place` the query."""
    t = check(x=(x, "b t d"))["t"]
    check_number(low=0, high=t - 1, whole=True, place=place)
    positions = torch.eye(t, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)[:, :, None]
    query = sharpness * math.sqrt(t) * positions[:, place : place + 1]
    return attention(query, positions, x[:, :, None], causal=False)[:, 0, 0]


@torch.no_grad()
def attention_map(layer: Attention, x: Tensor) -> Tensor:
    """The weights (b h t t) of a layer that reads x (b t d), query by key."""
    t = check(x=(x, f"b t {layer.q_proj.in_features}"))["t"]
    q, k = (p(x).unflatten(2, (-1, layer.head_dim)) for p in (layer.q_proj, layer.k_proj))
    c, positions = layer.config, torch.arange(t, device=x.device)
    if c.base is not None:
        q, k = (rotate(y, positions, rates=layer.rates(x.device)) for y in (q, k))
    if c.scale is not None:
        q = q * (c.scale * math.sqrt(layer.head_dim))
    places = torch.eye(t, dtype=q.dtype, device=x.device).expand(len(x), -1, -1)
    values = places[:, :, None].expand(-1, -1, k.shape[2], -1)  # a value that says where it is
    return attention(q, k, values, window=c.window).transpose(1, 2)


def induction_score(weights: Tensor, tokens: Tensor) -> Tensor:
    """(h,) how much weight a token gives to what followed its like, on average over such tokens.

    weights (b h t t) from `attention_map`, tokens (b t). 1 is a perfect induction head. Olsson et
    al. 2022, "prefix matching". Raises ValueError where no token comes twice.
    """
    t = tokens.shape[1]
    check(weights=(weights, f"b h {t} {t}"), tokens=(tokens, "b t"))
    followed = torch.zeros(len(tokens), t, t, dtype=torch.bool, device=tokens.device)
    followed[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    followed &= torch.ones(t, t, dtype=torch.bool, device=tokens.device).tril()
    counts = followed.any(2)
    if not counts.any():
        raise ValueError("tokens: expected some token to come again, got none")
    given = (weights * followed[:, None]).sum(3)
    return (given * counts[:, None]).sum((0, 2)) / counts.sum()


def _rate(error: float, values: int) -> float:
    """Bits per fact with which an error can be kept, by at least one scheme and by none below."""
    entropy = -sum(p * math.log2(p) for p in (error, 1 - error) if p > 0)
    return math.log2(values) - entropy - error * math.log2(max(values - 1, 1))


def _cosines(d: int) -> tuple[Tensor, Tensor]:
    """Of the angles between random directions of d dimensions: a grid, and its probabilities."""
    x = (torch.arange(200, dtype=torch.float64) + 0.5) / 100 - 1
    density = (1 - x.square()) ** ((d - 3) / 2)
    return x, density / density.sum()
