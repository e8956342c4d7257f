import triton

from ssmlib.kernels.sizes import cdiv, power_of_2, up_to


def test_they_are_what_triton_says():
    for size in range(1, 300):
        assert power_of_2(size) == triton.next_power_of_2(size)
        for step in (1, 3, 16, 128):
            assert cdiv(size, step) == triton.cdiv(size, step)
            assert up_to(size, step) == cdiv(size, step) * step >= size
