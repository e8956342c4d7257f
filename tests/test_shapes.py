import numpy as np
import pytest
import torch

from ssmlib import shapes
from ssmlib.attention import attention
from ssmlib.discretize import kernel
from ssmlib.example import embed
from ssmlib.shapes import check, check_broadcast, check_floating, check_number


def test_sizes_are_returned_by_letter():
    x, state = torch.zeros(2, 7, 5), torch.zeros(2, 5, 3)
    assert check(x=(x, "b t d"), state=(state, "b d n")) == {"b": 2, "t": 7, "d": 5, "n": 3}


def test_none_is_skipped_and_numbers_stand_for_themselves():
    assert check(x=(torch.zeros(4, 1), "t 1"), state=(None, "b d")) == {"t": 4}


def test_leading_axes_may_be_left_open():
    assert check(x=(torch.zeros(2, 3, 4), "... d"), y=(torch.zeros(4), "... d")) == {"d": 4}


@pytest.mark.parametrize(
    ("shape", "pattern", "message"),
    [
        (
            (2, 256, 16),
            "b d n",
            r"state: expected \(b, d, n\) with d=512 \(from x\), got shape \(2, 256",
        ),
        ((2, 512), "b d n", r"state: expected \(b, d, n\), got shape \(2, 512\)"),
        ((3, 256), "b d", r"with b=2 \(from x\), d=512 \(from x\), got shape \(3, 256\)"),
        ((2, 512, 0), "b d n", r"state: expected \(b, d, n\) with n >= 1, got shape \(2, 512, 0\)"),
        ((2, 512, 4), "b d 3", r"state: expected \(b, d, 3\), got shape \(2, 512, 4\)"),
        ((7,), "d", r"state: expected \(d,\) with d=512 \(from x\), got shape \(7,\)"),
    ],
)
def test_a_wrong_shape_names_argument_wanted_came_and_origin(shape, pattern, message):
    with pytest.raises(ValueError, match=message):
        check(x=(torch.zeros(2, 8, 512), "b t d"), state=(torch.zeros(shape), pattern))


def test_an_empty_sequence_is_refused():
    with pytest.raises(
        ValueError, match=r"x: expected \(b, t, d\) with t >= 1, got shape \(2, 0, 5\)"
    ):
        check(x=(torch.zeros(2, 0, 5), "b t d"))


def test_something_else_than_a_tensor_is_named():
    with pytest.raises(ValueError, match=r"x: expected a tensor \(b, t\), got list"):
        check(x=([[1.0]], "b t"))


def test_a_second_device_is_named():
    with pytest.raises(ValueError, match=r"y: expected device cpu \(from x\), got device meta"):
        check(x=(torch.zeros(2), "t"), y=(torch.zeros(2, device="meta"), "t"))


def test_integers_and_complex_numbers_are_not_floating():
    check_floating(x=torch.zeros(1), state=None)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(
            ValueError, match=f"x: expected a floating point tensor, got dtype {dtype}"
        ):
            check_floating(x=torch.zeros(1, dtype=dtype))


@pytest.mark.parametrize(
    "bad",
    [float("nan"), float("inf"), -1, "1", None, True, 1j, 10**400, np.True_, np.float32("nan")],
)
def test_numbers_out_of_bounds_are_refused(bad):
    with pytest.raises(ValueError, match=r"dt: expected a finite number >= 0, got "):
        check_number(dt=bad, low=0)


def test_whole_numbers():
    check_number(window=1, low=1, whole=True)
    with pytest.raises(ValueError, match=r"window: expected a whole number >= 1 <= 4, got 2.0"):
        check_number(window=2.0, low=1, high=4, whole=True)


def test_an_integer_may_be_too_large_for_a_float():
    check_number(window=10**400, low=1, whole=True)


@pytest.mark.parametrize("number", [np.float16(0.5), np.float32(1e38), np.float64(2), np.int64(2)])
def test_numbers_of_numpy(number):
    check_number(dt=number, low=0)
    if isinstance(number, np.integer):
        check_number(window=number, low=1, high=4, whole=True)
    else:
        with pytest.raises(ValueError, match=r"window: expected a whole number >= 1, got np.float"):
            check_number(window=number, low=1, whole=True)


@pytest.mark.parametrize("f", [
    lambda x: attention(x, x, x, window=x.shape[1] // 2),
    lambda x: kernel(torch.eye(4) / 2, x[0, 0].mT, x[0, 0], x.shape[1]),
], ids=["window", "length"])  # fmt: skip
def test_a_number_may_be_a_traced_size(f):
    x = torch.linspace(-1, 1, 96).view(1, 12, 2, 4)
    traced = torch.compile(f, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(traced(x), f(x))


def test_broadcasting_is_checked_with_names():
    x = torch.ones(3)
    check_broadcast(x=x, y=torch.ones(2, 1), dt=0.1, scalar=torch.tensor(1.0))
    check_broadcast(x=torch.ones(3, device="meta"), scalar=torch.tensor(1.0))
    with pytest.raises(
        ValueError, match=r"x, y, z: expected shapes that broadcast, got \(3,\), \(2,\), \(\)"
    ):
        check_broadcast(x=x, y=torch.ones(2), z=1.0)
    with pytest.raises(ValueError, match=r"y: expected device cpu \(from x\), got device meta"):
        check_broadcast(x=x, y=torch.ones(3, device="meta"))


@pytest.mark.parametrize("d", [0, -1, 2.0, None])
def test_the_eight_tokens_need_a_width(d):
    with pytest.raises(ValueError, match="d: expected a whole number >= 1, got "):
        embed(d)
    assert embed(np.int64(2)).shape == (1, 8, 2)


def test_check_traces_in_one_graph():
    def f(x, state):
        return x.sum() * check(x=(x, "b t d"), state=(state, "b d"))["t"]

    x, state = torch.ones(2, 3, 4), torch.ones(2, 4)
    assert torch.compile(f, fullgraph=True, backend="eager")(x, state) == f(x, state)


def test_what_passed_once_passes_again_and_nothing_else_does(monkeypatch):
    monkeypatch.setattr(shapes, "MANY", 2)
    x, state = torch.zeros(2, 5, 3), torch.zeros(2, 3)
    for _ in range(3):
        sizes = check(x=(x, "b t d"), state=(state, "b d"), z=(None, "b t d"))
        assert sizes == {"b": 2, "t": 5, "d": 3}
        sizes["b"] = 0  # the caller's own
        with pytest.raises(ValueError, match="z: expected a tensor"):
            check(x=(x, "b t d"), state=(state, "b d"), z=(0, "b t d"))
        with pytest.raises(ValueError, match=r"state: expected \(b, d\) with b=2"):
            check(x=(x, "b t d"), state=(state.mT, "b d"), z=(None, "b t d"))
        with pytest.raises(ValueError, match="state: expected device cpu"):
            check(x=(x, "b t d"), state=(state.to("meta"), "b d"), z=(None, "b t d"))
        check(x=(x, "b t d"))
    assert len(shapes._passed) <= 2
