#pragma once
/// Quantised matrices with random codes, for tests.

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "gpu_exec/quantised.h"
#include "tests/gpu_exec/exec_testing.h"

namespace librarian::gpu_exec {

/// A matrix with its tables, one byte off any alignment: checkpoints give no better.
struct TestQuantised {
  std::string name;
  QuantisedMatrix matrix;
  std::deque<Bytes> tables;
};

/// Gives a matrix whose sizes, layout and types are set the tables that it needs.
/// @param groups_shuffled  Inputs are in groups at random.
std::shared_ptr<const TestQuantised> filled(std::string name, QuantisedMatrix matrix,
                                            bool groups_shuffled = false);

/// Every layout of codes, scales and zero points, of `inputs` (a multiple of 24) and `outputs`
/// (one of 8).
std::vector<std::shared_ptr<const TestQuantised>> all_layouts(std::uint64_t outputs,
                                                              std::uint64_t inputs);

/// 4-bit codes word by word along the inputs, with zero points and scales in groups of them.
std::shared_ptr<const TestQuantised> gptq_matrix(std::uint64_t outputs, std::uint64_t inputs,
                                                 std::uint32_t bits = 4, bool shuffled = false);
/// A byte for each code, with scales for blocks.
std::shared_ptr<const TestQuantised> fp8_matrix(std::uint64_t outputs, std::uint64_t inputs,
                                                ScaleType scales = ScaleType::f32);

}  // namespace librarian::gpu_exec
