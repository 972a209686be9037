"""Writes tests/golden/quantised/NAME.safetensors: one matrix in each layout that quantised checkpoints
use, and `expected`: what the layout's own library decodes it to, bit for bit. The file's metadata
holds the checkpoint's quantization_config and who decoded it.

Needs torch, transformers, compressed-tensors, bitsandbytes (CPU is enough); no network:
    python tests/golden/make_quantised.py tests/golden/quantised
"""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

OUT, IN, GROUP = 40, 192, 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def integers(seed: int, low: int, high: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator)


def scales(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 0.02 + 0.001).to(dtype)


def fp8(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 60
    values.view(-1)[:4] = torch.tensor([0.0, -0.0, 448.0, 2.0**-9])
    return values.to(torch.float8_e4m3fn)


def packed_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, n] codes -> int32 [rows, ceil(n * bits / 32)], lowest bits first, dense."""
    rows, count = codes.shape
    words = torch.zeros(rows, (count * bits + 31) // 32, dtype=torch.int64)
    for i in range(count):
        word, shift = divmod(i * bits, 32)
        words[:, word] |= (codes[:, i].long() << shift) & 0xFFFFFFFF
        if shift + bits > 32:
            words[:, word + 1] |= codes[:, i].long() >> (32 - shift)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


class Writer:
    def __init__(self, directory: Path):
        self.directory = directory

    def write(self, name: str, tensors: dict, expected: torch.Tensor, config: dict, by: str) -> None:
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        tensors["expected"] = expected.contiguous()
        metadata = {"quantization_config": json.dumps(config), "decoded_by": by}
        save_file(tensors, self.directory / f"{name}.safetensors", metadata)
        print(f"{name}: {tuple(expected.shape)} {expected.dtype}, {by}")


def block_fp8(writer: Writer) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    decode = Fp8Dequantize(None)._dequantize_one
    config = {"quant_method": "fp8", "weight_block_size": [16, 64]}
    for name, dtype in (("fp8_block", torch.float32), ("fp8_block_bf16", torch.bfloat16)):
        weight, scale = fp8(1, 48, IN), scales(2, dtype, 3, 3)
        writer.write(name, {"weight": weight, "weight_scale_inv": scale}, decode(weight, scale),
                     config, "transformers Fp8Dequantize")
    scale = torch.tensor([[120, 127, 130], [119, 0, 126], [125, 124, 128]], dtype=torch.uint8)
    scale = scale.view(torch.float8_e8m0fnu)
    writer.write("fp8_block_e8m0", {"weight": weight, "weight_scale_inv": scale},
                 decode(weight, scale), config, "transformers Fp8Dequantize")
    # Edges that no block fills: transformers refuses them, so the formula.
    weight, scale = fp8(3, OUT, 160), scales(4, torch.float32, 3, 3)
    full = scale.repeat_interleave(16, 0)[:OUT].repeat_interleave(64, 1)[:, :160]
    writer.write("fp8_block_ragged", {"weight": weight, "weight_scale_inv": scale},
                 weight.float() * full, config, "formula")
    weight, scale = fp8(5, OUT, IN), scales(6, torch.float32, OUT, 1)
    writer.write("fbgemm_fp8", {"weight": weight, "weight_scale": scale}, weight.float() * scale,
                 {"quant_method": "fbgemm_fp8"}, "formula")


def compressed_tensors(writer: Writer) -> None:
    def args(**fields):
        return {"num_bits": 8, "type": "int", "symmetric": True, **fields}

    def write(name, format_name, weights, tensors):
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        decoded = BaseCompressor.get_value_from_registry(format_name).decompress(dict(tensors), scheme)
        config = {"quant_method": "compressed-tensors", "format": format_name,
                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
        writer.write(name, tensors, decoded["weight"], config, f"compressed-tensors {format_name}")

    write("ct_float_channel", "float-quantized",
          args(type="float", strategy="channel"),
          {"weight": fp8(10, OUT, IN), "weight_scale": scales(11, torch.bfloat16, OUT, 1)})
    write("ct_float_tensor", "float-quantized",
          args(type="float", strategy="tensor"),
          {"weight": fp8(12, OUT, IN), "weight_scale": scales(13, torch.float32, 1)})
    write("ct_float_block", "float-quantized",
          args(type="float", strategy="block", block_structure=[16, 64]),
          {"weight": fp8(14, 48, IN), "weight_scale": scales(15, torch.bfloat16, 3, 3)})
    int8 = integers(16, -128, 128, OUT, IN).to(torch.int8)
    write("ct_int_channel", "int-quantized", args(strategy="channel"),
          {"weight": int8, "weight_scale": scales(17, torch.bfloat16, OUT, 1)})
    write("ct_int_channel_asymmetric", "int-quantized", args(strategy="channel", symmetric=False),
          {"weight": int8, "weight_scale": scales(18, torch.float32, OUT, 1),
           "weight_zero_point": integers(19, -128, 128, OUT, 1).to(torch.int8)})
    for bits in (2, 3, 4, 8):
        half = 2 ** (bits - 1)
        codes = integers(20 + bits, -half, half, OUT, IN).to(torch.int8)
        group = {"num_bits": bits, "strategy": "group", "group_size": GROUP}
        tensors = {"weight_packed": pack_to_int32(codes, bits),
                   "weight_scale": scales(30 + bits, torch.bfloat16, OUT, IN // GROUP),
                   "weight_shape": torch.tensor([OUT, IN])}
        write(f"ct_pack_{bits}bit", "pack-quantized", args(**group), tensors)
        zeros = integers(40 + bits, -half, half, OUT, IN // GROUP).to(torch.int8)
        write(f"ct_pack_{bits}bit_asymmetric", "pack-quantized", args(symmetric=False, **group),
              {**tensors, "weight_zero_point": pack_to_int32(zeros, bits, packed_dim=0).contiguous()})
        if bits == 4:
            shuffled = torch.randperm(IN, generator=torch.Generator().manual_seed(7)) // GROUP
            # Libraries since 0.12 no longer take what older checkpoints have: the formula.
            index = torch.randperm(IN, generator=torch.Generator().manual_seed(7)) // GROUP
            writer.write("ct_pack_4bit_actorder", {**tensors, "weight_g_idx": index.to(torch.int32)},
                         codes.bfloat16() * tensors["weight_scale"][:, index],
                         {"quant_method": "compressed-tensors", "format": "pack-quantized",
                          "config_groups": {"group_0": {"targets": ["Linear"], "weights": args(
                              actorder="group", **group)}}}, "formula")
            write("ct_pack_4bit_channel", "pack-quantized", args(num_bits=4, strategy="channel"),
                  {**tensors, "weight_scale": scales(50, torch.float16, OUT, 1)})
    packed = integers(60, 0, 256, OUT, IN // 2).to(torch.uint8)
    write("ct_nvfp4", "nvfp4-pack-quantized",
          args(num_bits=4, type="float", strategy="tensor_group", group_size=16),
          {"weight_packed": packed,
           "weight_scale": (fp8(61, OUT, IN // 16).float().abs() + 1).to(torch.float8_e4m3fn),
           "weight_global_scale": torch.tensor([1234.5])})


def mxfp4(writer: Writer) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = integers(70, 0, 256, 2, OUT, IN // 32, 16).to(torch.uint8)
    exponents = integers(71, 110, 135, 2, OUT, IN // 32).to(torch.uint8)
    decoded = convert_moe_packed_tensors(blocks, exponents)  # [experts, inputs, outputs]
    writer.write("mxfp4", {"weight_blocks": blocks[1], "weight_scales": exponents[1]},
                 decoded[1].T, {"quant_method": "mxfp4"}, "transformers convert_moe_packed_tensors")


def awq_and_gptq(writer: Writer) -> None:
    """The formulas: the libraries' unpacking needs their GPU kernels' packages."""
    groups = IN // GROUP
    codes, zeros = integers(80, 0, 16, IN, OUT), integers(81, 0, 16, groups, OUT)
    scale = scales(82, torch.float16, groups, OUT)

    def awq_words(values):
        order = values.reshape(values.shape[0], -1, 8)[:, :, list(AWQ_ORDER)]
        return packed_words(order.reshape(values.shape), 4)

    full = scale.repeat_interleave(GROUP, 0)
    expected = ((codes - zeros.repeat_interleave(GROUP, 0)).half() * full).T
    writer.write("awq", {"qweight": awq_words(codes), "qzeros": awq_words(zeros), "scales": scale},
                 expected, {"quant_method": "awq", "bits": 4, "group_size": GROUP,
                            "version": "gemm", "zero_point": True}, "formula")
    for bits in (2, 3, 4, 8):
        codes = integers(90 + bits, 0, 2**bits, IN, OUT)
        zeros = integers(100 + bits, 1, 2**bits, groups, OUT)
        in_order = torch.arange(IN) // GROUP
        shuffled = torch.randperm(IN, generator=torch.Generator().manual_seed(bits)) // GROUP
        for version, index in ((1, in_order), (2, in_order), (1, shuffled)):
            act_order = index is shuffled
            tensors = {"qweight": packed_words(codes.T, bits).T,
                       "qzeros": packed_words(zeros - 1 if version == 1 else zeros, bits),
                       "scales": scale, "g_idx": index.to(torch.int32)}
            expected = ((codes - zeros[index]).half() * scale[index]).T
            config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP,
                      "desc_act": act_order, "sym": False,
                      "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
            name = f"gptq_{bits}bit" + ("_v2" if version == 2 else "") + ("_desc" if act_order else "")
            writer.write(name, tensors, expected, config, "formula")


def bitsandbytes(writer: Writer) -> None:
    import bitsandbytes.functional as bnb

    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(110)) * 0.1
    for name, kind, nested, dtype in (("bnb_nf4", "nf4", False, torch.bfloat16),
                                      ("bnb_nf4_nested", "nf4", True, torch.bfloat16),
                                      ("bnb_nf4_f16", "nf4", True, torch.float16),
                                      ("bnb_fp4", "fp4", False, torch.float32)):
        packed, state = bnb.quantize_4bit(weight.to(dtype), quant_type=kind, blocksize=64,
                                          compress_statistics=nested)
        tensors = {"weight": packed}
        tensors |= {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
                  "bnb_4bit_use_double_quant": nested}
        writer.write(name, tensors, bnb.dequantize_4bit(packed, state), config, "bitsandbytes")
    codes = integers(111, -127, 128, OUT, IN).to(torch.int8)
    stats = scales(112, torch.float32, OUT) * 100
    writer.write("bnb_int8", {"weight": codes, "SCB": stats}, bnb.int8_vectorwise_dequant(codes, stats),
                 {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes")


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    writer = Writer(directory)
    block_fp8(writer)
    compressed_tensors(writer)
    mxfp4(writer)
    awq_and_gptq(writer)
    bitsandbytes(writer)


if __name__ == "__main__":
    main()
