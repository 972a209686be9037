"""numpy arrays as a store gives them (bfloat16 as bits): types, checks, fp8."""

from __future__ import annotations

import numpy as np

from .._arrays import bf16_to_float

FP8_MAX = 448.0  # Largest float8_e4m3fn.
_SCALE_MIN = 1e-12  # speculators' clamp, so that a row of zeros divides.
_SAFETENSORS_NAMES = {"bfloat16": "BF16", "uint16": "BF16", "float16": "F16", "float32": "F32",
                      "int32": "I32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def safetensors_name(array: np.ndarray) -> str:
    """Type of a store's array in a safetensors header."""
    return _SAFETENSORS_NAMES[array.dtype.name]


def bits(array: np.ndarray) -> np.ndarray:
    """The same array; ml_dtypes' bfloat16 as uint16."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def is_finite(array: np.ndarray) -> bool:
    """No NaN and no infinity."""
    array = bits(array)
    if array.dtype == np.uint16:
        return not bool(((array & 0x7F80) == 0x7F80).any())
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def to_float(array: np.ndarray) -> np.ndarray:
    """float32; exact."""
    array = bits(array)
    return bf16_to_float(array) if array.dtype == np.uint16 else array.astype(np.float32)


def quantized_fp8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float8_e4m3fn with one scale per token.

    @param values  float32 [tokens, layers, width], finite.
    @return  uint8 bits [tokens, layers, width]; float32 scales [tokens, 1, 1], such that
             value = fp8 * scale.
    @source  speculators' FP8 connector (pull request 1028): scale = max(amax / 448, 1e-12) over layers
             and width together, fp8 = value / scale rounded to nearest even.
    """
    amax = np.abs(values).max(axis=(1, 2), keepdims=True, initial=0)
    scales = np.maximum(amax / np.float32(FP8_MAX), np.float32(_SCALE_MIN))
    return fp8_bits(values / scales), scales


def fp8_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bits of float8_e4m3fn, nearest even; NaN (0x7F) where |value| rounds above 448."""
    magnitude = np.abs(values)
    _, exponent = np.frexp(magnitude)
    # -6 is the subnormals' own and zero's; 8 is the largest value's.
    exponent = np.where(magnitude == 0, -6, np.clip(exponent - 1, -6, 8))
    steps = np.rint(np.ldexp(magnitude, 3 - exponent))  # 8..16 of normal values: exact in float32.
    steps = np.where(np.isnan(steps), 127, steps)
    encoded = np.minimum((exponent + 6) * 8 + steps, 127).astype(np.uint8)
    return encoded | (np.signbit(values).astype(np.uint8) << 7)
