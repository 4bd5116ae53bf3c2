"""The coefficients of the functions in `elementary` and `softmax_terms`."""

from types import SimpleNamespace
from typing import Any

import numpy as np


def _constants(real: Any, **hexadecimal: str) -> SimpleNamespace:
    """Read a table of numbers and, where there are more than one, tuples of numbers."""
    table = {
        name: tuple(real(float.fromhex(number)) for number in text.split())
        for name, text in hexadecimal.items()
    }
    return SimpleNamespace(**{k: v[0] if len(v) == 1 else v for k, v in table.items()})


# Both tables come from `python -m tests.derivations.elementary`, which says what each entry is.
FLOAT32 = _constants(
    np.float32,
    ln2_high="0x1.62e4p-1",
    ln2_low="0x1.7f7d1cp-20",
    log2_e="0x1.715476p+0",
    exp_lowest="-0x1.ap+6",
    exp_highest="0x1.64p+6",
    log_start="0x1.64p-1",
    exp="""
        0x1.fffff8p-2 0x1.55548ep-3 0x1.555b96p-5 0x1.123bcep-7 0x1.685346p-10
    """,
    log="""
        0x1.555586p-1 0x1.995292p-2 0x1.33372cp-2
    """,
    excess="""
        0x1p-1 0x1.555556p-3 0x1.55557p-5 0x1.1110c2p-7 0x1.6c024p-10 0x1.a03858p-13 0x1.a901e6p-16
        0x1.71cd16p-19
    """,
    jensen="""
        0x1.fffffcp-5 -0x1.fffd3ep-8 0x1.c6c5f2p-11 -0x1.7eb93cp-14 0x1.2990c8p-17 -0x1.6f3a7ap-21
        0x1.ecf282p-26
    """,
    mixture="""
        0x1.62e43p-2 -0x1.3a37f8p-3 -0x1.ffeac8p-3 0x1.51d91p-4 -0x1.18624cp-5
    """,
)

FLOAT64 = _constants(
    np.float64,
    ln2_high="0x1.62e42fefa38p-1",
    ln2_low="0x1.ef35793c7673p-45",
    log2_e="0x1.71547652b82fep+0",
    exp_lowest="-0x1.75p+9",
    exp_highest="0x1.63p+9",
    log_start="0x1.64p-1",
    exp="""
        0x1.000000000000bp-1 0x1.555555555550fp-3 0x1.55555555502a5p-5 0x1.1111111122b4dp-7
        0x1.6c16c1852a4d3p-10 0x1.a01a0144951d3p-13 0x1.a01997cc14d22p-16 0x1.71deec72940f7p-19
        0x1.28af3c914bc67p-22 0x1.add74cf57f726p-26
    """,
    log="""
        0x1.55555555555cep-1 0x1.999999996ba88p-2 0x1.24924954197eep-2 0x1.c71c431cefd0dp-3
        0x1.74695428be8d6p-3 0x1.3951ef21b86b7p-3 0x1.322947669afc4p-3
    """,
    excess="""
        0x1.fffffffffffffp-2 0x1.5555555555502p-3 0x1.5555555555783p-5 0x1.111111111a578p-7
        0x1.6c16c16be65e8p-10 0x1.a01a018d510f5p-13 0x1.a01a01cf86b4fp-16 0x1.71de4a95f51fp-19
        0x1.27e4e818eecb4p-22 0x1.ae56b3de6d05bp-26 0x1.1ef2ffdea9fafp-29 0x1.669e4a9d82e5ep-33
        0x1.94f8239e288a1p-37
    """,
    jensen="""
        0x1.ffffffffffffdp-5 -0x1.ffffffffff657p-8 0x1.c71c71c6c48cep-11 -0x1.82d82d6ed654fp-14
        0x1.427a8ba77fa48p-17 -0x1.0a3a2eac97eaap-20 0x1.b52e175a158aap-24 -0x1.65a4901bbe006p-27
        0x1.234a2df26afddp-30 -0x1.d4b76b2f7f5d2p-34 0x1.6ad42fc57f8adp-37 -0x1.fd25de09048a4p-41
        0x1.241c34be1186ap-44 -0x1.d1f415ee4d0dcp-49 0x1.750cdfcfa00cap-54
    """,
    mixture="""
        0x1.62e42fefa39efp-2 -0x1.3a37a020b8b5fp-3 -0x1.00000000032fbp-2 0x1.555555583d03ap-4
        -0x1.555555fa5e8aap-5 0x1.9999a895b92b6p-6 -0x1.1110a7d282b35p-6 0x1.85eb65495c707p-7
        -0x1.221638a0bea51p-7 0x1.a281e959f1915p-8 -0x1.b0ab0dbbe5fadp-9
    """,
)
