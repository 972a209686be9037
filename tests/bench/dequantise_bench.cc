// Speed at which the CPU device packs quantised matrices, which is where it decodes them, beside
// memcpy of the decoded bytes and beside packing the same matrix as plain bf16. One thread; all
// take turns, and rates are per second of processor time, so that other work on the machine counts
// for all alike. usage: dequantise_bench [ROUNDS=7] [PART-OF-A-NAME]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>

#include "tests/gpu_exec/quantised_testing.h"

namespace librarian::gpu_exec {
namespace {

// An expert of DeepSeek-V3, more than caches hold.
constexpr std::uint64_t kOutputs = 2048;
constexpr std::uint64_t kInputs = 7168;
constexpr std::uint64_t kDecodedBytes = kOutputs * kInputs * 2;

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct Case {
  std::string name;
  std::uint64_t bytes;  ///< Read: codes, scales and zero points.
  std::function<void()> work;
  std::vector<double> seconds;
};

std::shared_ptr<const TestQuantised> matrix(const char* name,
                                            const std::function<void(QuantisedMatrix&)>& layout,
                                            bool shuffled = false) {
  QuantisedMatrix m;
  m.outputs = kOutputs;
  m.inputs = m.scale_inputs = kInputs;
  layout(m);
  m.groups = (kInputs + m.scale_inputs - 1) / m.scale_inputs;
  return filled(name, m, shuffled);
}

void by_blocks(QuantisedMatrix& m) { m.scale_outputs = m.scale_inputs = 128; }

/// compressed-tensors' words.
void by_bits(QuantisedMatrix& m, std::uint32_t bits) {
  m.layout = CodeLayout::bits_by_row;
  m.bits = bits;
  m.scale_type = ScaleType::bf16;
  m.scale_inputs = 128;
}

void as_gptq(QuantisedMatrix& m, std::uint32_t bits) {
  m.layout = CodeLayout::bits_by_input;
  m.bits = bits;
  m.scale_type = ScaleType::f16;
  m.scale_inputs = 128;
  m.scale_by_input = true;
  m.zero_layout = ZeroLayout::bits_in_row;
  m.zero_plus = 1;
  m.result = DType::f16;
}

void as_awq(QuantisedMatrix& m) {
  as_gptq(m, 4);
  m.layout = CodeLayout::awq;
  m.zero_layout = ZeroLayout::awq;
  m.zero_plus = 0;
}

void in_e2m1(QuantisedMatrix& m, ScaleType scales, std::uint64_t group) {
  m.layout = CodeLayout::e2m1_by_row;
  m.bits = 4;
  m.scale_type = scales;
  m.scale_inputs = group;
  m.has_global = scales == ScaleType::f8_e4m3;
  m.divides_by_global = true;
}

void as_bitsandbytes(QuantisedMatrix& m, ScaleType scales) {
  m.layout = CodeLayout::table_flat;
  m.bits = 4;
  m.scale_type = scales;
  m.scale_inputs = 64;
}

std::vector<std::shared_ptr<const TestQuantised>> matrices() {
  using Matrix = QuantisedMatrix;
  return {
      matrix("FP8, blocks of 128x128", by_blocks),
      matrix("FP8, blocks, E8M0 scales",
             [](Matrix& m) {
               by_blocks(m);
               m.scale_type = ScaleType::e8m0;
             }),
      matrix("FP8, a scale a row", [](Matrix& m) { m.scale_type = ScaleType::bf16; }),
      matrix("FP8, one scale", [](Matrix& m) { m.scale_outputs = kOutputs; }),
      matrix("INT8, a scale a row", [](Matrix& m) { m.layout = CodeLayout::int8; }),
      matrix("LLM.int8",
             [](Matrix& m) {
               m.layout = CodeLayout::int8;
               m.after = 1.0F / 127;
               m.result = DType::f32;
             }),
      matrix("MXFP4", [](Matrix& m) { in_e2m1(m, ScaleType::e8m0, 32); }),
      matrix("NVFP4", [](Matrix& m) { in_e2m1(m, ScaleType::f8_e4m3, 16); }),
      matrix("packed INT2", [](Matrix& m) { by_bits(m, 2); }),
      matrix("packed INT3", [](Matrix& m) { by_bits(m, 3); }),
      matrix("packed INT4", [](Matrix& m) { by_bits(m, 4); }),
      matrix("packed INT4, groups of 32",
             [](Matrix& m) {
               by_bits(m, 4);
               m.scale_inputs = 32;
             }),
      matrix("packed INT4, zero points",
             [](Matrix& m) {
               by_bits(m, 4);
               m.zero_layout = ZeroLayout::bits_by_output;
             }),
      matrix(
          "packed INT4, act-order", [](Matrix& m) { by_bits(m, 4); }, true),
      matrix("packed INT8", [](Matrix& m) { by_bits(m, 8); }),
      matrix("AWQ", as_awq),
      matrix("GPTQ, 2 bits", [](Matrix& m) { as_gptq(m, 2); }),
      matrix("GPTQ, 3 bits", [](Matrix& m) { as_gptq(m, 3); }),
      matrix("GPTQ, 4 bits", [](Matrix& m) { as_gptq(m, 4); }),
      matrix(
          "GPTQ, 4 bits, act-order", [](Matrix& m) { as_gptq(m, 4); }, true),
      matrix("GPTQ, 8 bits", [](Matrix& m) { as_gptq(m, 8); }),
      matrix("NF4, FP4", [](Matrix& m) { as_bitsandbytes(m, ScaleType::f32); }),
      matrix("NF4, nested scales", [](Matrix& m) { as_bitsandbytes(m, ScaleType::table8); }),
  };
}

void run(int rounds, const std::string& only) {
  const auto device = cpu_device(best_cpu_isa(), 1);
  const auto memory = device->allocate(device->packed_bytes(kOutputs, kInputs, DType::bf16));
  std::byte* const packed = memory->get();
  const Bytes plain(kDecodedBytes, std::byte{0x3C});
  std::vector<Case> cases;
  cases.push_back(
      {"memcpy", kDecodedBytes, [&] { std::memcpy(packed, plain.data(), plain.size()); }, {}});
  cases.push_back(
      {"plain bf16",
       kDecodedBytes,
       [&] {
         device->pack_matrix({plain.data(), DType::bf16, {}, false, 0}, kOutputs, kInputs, packed);
       },
       {}});
  const auto quantised = matrices();
  for (const auto& one : quantised) {
    if (one->name.find(only) == std::string::npos) {
      continue;
    }
    const QuantisedSizes sizes = quantised_sizes(one->matrix);
    cases.push_back({one->name,
                     sizes.codes + sizes.scales + sizes.zeros + sizes.group_of_input,
                     [&device, packed, one] {
                       MatrixSource source;
                       source.quantised = &one->matrix;
                       device->pack_matrix(source, kOutputs, kInputs, packed);
                     },
                     {}});
  }
  for (int round = -1; round < rounds; ++round) {  // The first one warms up.
    for (Case& one : cases) {
      const double begin = thread_seconds();
      one.work();
      if (round >= 0) {
        one.seconds.push_back(thread_seconds() - begin);
      }
    }
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  std::printf("%-26s %10s %10s %10s %10s\n", "", "decoded", "as stored", "of memcpy", "of plain");
  for (const Case& one : cases) {
    const double seconds = median(one.seconds);
    const auto ratio_to = [&](const Case& other) {
      std::vector<double> ratios;
      for (std::size_t i = 0; i < one.seconds.size(); ++i) {
        ratios.push_back(other.seconds[i] / one.seconds[i]);
      }
      return median(ratios);
    };
    std::printf("%-26s %5.2f GB/s %5.2f GB/s %10.2f %10.2f\n", one.name.c_str(),
                1e-9 * static_cast<double>(kDecodedBytes) / seconds,
                1e-9 * static_cast<double>(one.bytes) / seconds, ratio_to(cases[0]),
                ratio_to(cases[1]));
  }
}

}  // namespace
}  // namespace librarian::gpu_exec

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  if (rounds < 1 || argc > 3) {
    std::fprintf(stderr, "usage: dequantise_bench [ROUNDS=7] [PART-OF-A-NAME]\n");
    return 2;
  }
  librarian::gpu_exec::run(rounds, argc > 2 ? argv[2] : "");
  return 0;
}
