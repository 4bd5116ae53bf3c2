"""Derive the constants of ``kldiv_dask/kernels/elementary_tables.py``.

Run as ``python -m tests.derivations.elementary``; it prints them as they stand there, then how
far each rounded polynomial is from its function.

A polynomial is the least-squares fit, on Chebyshev nodes, of the relative error of the result
it ends up in. Its coefficients are rounded one by one, lowest power first, and the ones still
free are fitted again each time, so that they make up for what the rounding has cost. For a
quadratic form that is no more than solving the trailing block of the normal equations, which
200 spare bits keep well-conditioned.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mpmath import mp, mpf

mp.prec = 256

LN2 = mp.log(2)


class Format(NamedTuple):
    name: str
    precision: int
    exponent: int
    exp_terms: int
    log_terms: int
    excess_terms: int
    jensen_terms: int
    mixture_terms: int


FORMATS = (
    Format("FLOAT32", 24, 8, 5, 3, 8, 7, 5),
    Format("FLOAT64", 53, 11, 10, 7, 13, 15, 11),
)

# Powers of two are taken out of the argument of log so that what remains lies in [START, 2 START].
START = mpf(89) / 128

# Rounding the multiple of ln 2 in float32 lets r pass ln(2) / 2 by one part in 100 000.
EXP_RANGE = LN2 / 2 * (1 + mpf(2) ** -16)

LOG_RANGE = max((1 - START) / (1 + START), (2 * START - 1) / (2 * START + 1)) ** 2

# A compromise of two polynomials, one of which grows with it and one shrinks.
JENSEN_RANGE = 2


def exp_remainder(r: mpf) -> tuple[mpf, mpf]:
    """(e^r - 1 - r) / r^2, and what one unit of it adds to e^r, relatively."""
    return (mp.expm1(r) - r) / r**2, r**2 / mp.exp(r)


def log_remainder(square: mpf) -> tuple[mpf, mpf]:
    """(ln((1 + s) / (1 - s)) - 2 s) / s^3, and what one unit of it adds to the logarithm."""
    s = mp.sqrt(square)
    logarithm = mp.log((1 + s) / (1 - s))
    return (logarithm - 2 * s) / s**3, s**3 / logarithm


def excess(u: mpf) -> tuple[mpf, mpf]:
    """(e^u - 1 - u) / u^2, and what one unit of it adds to e^u - 1 - u, relatively."""
    value = (mp.expm1(u) - u) / u**2
    return value, 1 / value


def jensen(square: mpf) -> tuple[mpf, mpf]:
    """J(u) / u^2 of u^2, and what one unit of it adds to J, relatively.

    J(u) = (s ln(2 s) + (1 - s) ln(2 (1 - s))) / 2 with s = 1 / (1 + e^-u), an even function, is
    what a class adds to the Jensen-Shannon divergence if its two probabilities sum to 1 and the
    logarithm of their ratio is u.
    """
    s = 1 / (1 + mp.exp(-mp.sqrt(square)))
    value = (s * mp.log(2 * s) + (1 - s) * mp.log(2 * (1 - s))) / (2 * square)
    return value, 1 / value


def mixture(z: mpf) -> tuple[mpf, mpf]:
    """(1 + z) ln(2 / (1 + z)) / 2, and what one unit of it adds to (1 + z) J(ln z), relatively."""
    value = (1 + z) * mp.log(2 / (1 + z)) / 2
    return value, 1 / (value + z * mp.log(z) / 2)


def rounded(value: mpf, precision: int) -> mpf:
    with mp.workprec(precision):
        return +value


def nodes(low: mpf, high: mpf, count: int) -> list[mpf]:
    """Chebyshev nodes; an even count keeps clear of the middle, where some functions are 0 / 0."""
    angles = (mp.pi * (2 * i + 1) / (2 * count) for i in range(count))
    return [(low + high) / 2 + (high - low) / 2 * mp.cos(angle) for angle in angles]


def fit(
    function: Callable[[mpf], tuple[mpf, mpf]], low: mpf, high: mpf, terms: int, precision: int
) -> list[mpf]:
    points = [(x, *function(x)) for x in nodes(low, high, 4 * terms)]
    moments = [mp.fsum(w**2 * x**power for x, _, w in points) for power in range(2 * terms - 1)]
    targets = [mp.fsum(w**2 * y * x**power for x, y, w in points) for power in range(terms)]
    done: list[mpf] = []
    while len(done) < terms:
        free = range(len(done), terms)
        matrix = mp.matrix([[moments[i + j] for j in free] for i in free])
        vector = [
            targets[i] - mp.fsum(moments[i + j] * c for j, c in enumerate(done)) for i in free
        ]
        done.append(rounded(mp.lu_solve(matrix, mp.matrix(vector))[0], precision))
    return done


def error(
    function: Callable[[mpf], tuple[mpf, mpf]], low: mpf, high: mpf, coefficients: Sequence[mpf]
) -> mpf:
    """Largest relative error that the polynomial alone causes in the result."""
    samples = ((x, *function(x)) for x in nodes(low, high, 2000))
    return max(
        abs(w * (mp.fsum(c * x**power for power, c in enumerate(coefficients)) - y))
        for x, y, w in samples
    )


def literal(value: mpf) -> str:
    """The value in hexadecimal; every constant is a Python float exactly."""
    assert mpf(float(value)) == value
    digits, exponent = float(value).hex().split("p")
    return f"{digits.rstrip('0').removesuffix('.')}p{exponent}"


def derive(form: Format) -> tuple[str, dict[str, mpf]]:
    """Source of the table for one type, and the error of each polynomial."""
    largest = 2 ** (form.exponent - 1)
    # Short enough for its exact product with the exponent of any number.
    ln2_high = rounded(LN2, form.precision - form.exponent)
    numbers = {
        "ln2_high": ln2_high,
        "ln2_low": rounded(LN2 - ln2_high, form.precision),
        "log2_e": rounded(1 / LN2, form.precision),
        # Where exp has become 0 and infinity.
        "exp_lowest": mp.floor(-(largest + form.precision - 2) * LN2),
        "exp_highest": mp.ceil(largest * LN2),
        "log_start": START,
    }
    polynomials = {
        "exp": (exp_remainder, -EXP_RANGE, EXP_RANGE, form.exp_terms),
        "log": (log_remainder, mpf(0), LOG_RANGE, form.log_terms),
        "excess": (excess, mpf(-1), mpf(1), form.excess_terms),
        "jensen": (jensen, mpf(0), JENSEN_RANGE**2, form.jensen_terms),
        "mixture": (mixture, mpf(0), mp.exp(-JENSEN_RANGE), form.mixture_terms),
    }
    lines = [f"{form.name} = _constants(", f"    np.{form.name.lower()},"]
    lines += [f'    {name}="{literal(value)}",' for name, value in numbers.items()]
    indent = {"initial_indent": " " * 8, "subsequent_indent": " " * 8}
    errors = {}
    for name, (function, low, high, terms) in polynomials.items():
        coefficients = fit(function, low, high, terms, form.precision)
        errors[name] = error(function, low, high, coefficients)
        words = " ".join(literal(c) for c in coefficients)
        lines += [f'    {name}="""', textwrap.fill(words, 100, **indent), '    """,']
    return "\n".join([*lines, ")"]), errors


if __name__ == "__main__":
    for form in FORMATS:
        source, errors = derive(form)
        print(source)
        for name, value in errors.items():
            ulps = value * mpf(2) ** form.precision
            bits = mp.nstr(mp.log(value, 2), 4)
            print(f"# {name}: relative error below 2^{bits}, {mp.nstr(ulps, 2)} ulp at most")
        print()
