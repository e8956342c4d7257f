"""Four ways to scan n entries, as rounds of pairs: chapter 06 has the same, with reasons."""

Rounds = list[list[tuple[int, int]]]


def loop(n: int) -> Rounds:
    return [[(j - 1, j)] for j in range(1, n)]


def hillis_steele(n: int) -> Rounds:
    return [[(j - s, j) for j in range(s, n)] for s in strides(n)]


def blelloch(n: int) -> Rounds:
    up = [[(j - s, j) for j in range(2 * s - 1, n, 2 * s)] for s in strides(n)]
    down = [[(j - s, j) for j in range(3 * s - 1, n, 2 * s)] for s in reversed(strides(n))]
    return [pairs for pairs in up + down if pairs]


def chunks_of_four(n: int) -> Rounds:
    inside = [[(j - 1, j) for j in range(s, n) if j % 4 == s] for s in (1, 2, 3)]
    carry = [[(j - 4, j)] for j in range(7, n, 4)]
    spread = [(j // 4 * 4 - 1, j) for j in range(4, n) if j % 4 < 3]
    return [pairs for pairs in [*inside, *carry, spread] if pairs]


def strides(n: int) -> list[int]:
    return [2**k for k in range((n - 1).bit_length())]


SCHEDULES = {
    "Blelloch": blelloch,
    "Hillis–Steele": hillis_steele,
    "loop": loop,
    "chunks of four": chunks_of_four,
}
