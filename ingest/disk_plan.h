#pragma once
/// Disk of a job: what the store will take, what the scratch takes at its peak, what is written in
/// all. Pure arithmetic; the compression ratio is an expectation, said to be one.

#include <cstdint>
#include <string>
#include <vector>

#include "activation_store/types.h"

namespace librarian::ingest {

/// One array over all parts.
struct DiskArray {
  std::string name;
  std::uint64_t rows = 0;
  std::uint64_t row_bytes = 0;
  activation_store::StoredType type{};
  std::uint32_t keep_mantissa_bits = 0;  ///< 0: all.
  std::uint64_t store_bytes = 0;         ///< As expected on disk; plan_disk() fills it.
};

struct DiskInputs {
  std::uint64_t tokens = 0;
  std::uint64_t part_tokens_max = 0;
  std::uint64_t row_bytes = 0;  ///< Of the state.
  std::vector<DiskArray> arrays;
  activation_store::Codec codec{};
  bool state_in_memory = true;
  std::uint64_t uncovered_layers = 0;  ///< Layers whose state is not also a capture.
  std::uint64_t skeleton_bytes = 0;    ///< Of <out>/model/; 0: not written, or there already.
};

struct DiskPlan {
  std::vector<DiskArray> arrays;
  std::uint64_t raw_bytes = 0;           ///< Captures before encoding.
  std::uint64_t store_bytes = 0;         ///< Captures as expected on disk.
  double expected_ratio = 1;             ///< raw / stored that was assumed.
  std::uint64_t scratch_peak_bytes = 0;  ///< State files that exist at the same time.
  std::uint64_t skeleton_bytes = 0;  ///< The tensors of <out>/model/; its other files are small.
  std::uint64_t peak_bytes = 0;      ///< Store, scratch and skeleton together.
  std::uint64_t written_bytes = 0;   ///< Everything that reaches the SSD.
};

DiskPlan plan_disk(const DiskInputs& inputs);

}  // namespace librarian::ingest
