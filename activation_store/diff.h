#pragma once
/// Are two stores equal, and if not: where, and by how much?

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/store_reader.h"
#include "base/error.h"
#include "base/file_system.h"

namespace librarian::activation_store {

/// What differs in one capture, over the samples that both stores have.
struct CaptureDiff {
  std::string name_a;                    ///< Array in the first store,
  std::string name_b;                    ///< and in the second: another one if aliases join them.
  std::uint64_t rows = 0;                ///< Tokens compared: those that the arrays keep.
  std::uint64_t elements = 0;            ///< Values compared.
  std::uint64_t elements_different = 0;  ///< Other bits; over types: other values.
  std::uint64_t rows_different = 0;
  /// Over tokens with differences: |a - b| / |a| of the row as vectors; infinite if a value is
  /// not finite or a is zero.
  double relative_error_max = 0;
  double cosine_min = 1;             ///< Over the same tokens; 0 where it has no value.
  std::int64_t worst_sample = -1;    ///< Row of the input file with the largest relative error,
  std::int64_t worst_position = -1;  ///< and the token in it; -1 if nothing differs.
  /// Set if the arrays cannot be compared at all: other widths, other rows, kept in other ways.
  std::string incomparable;
  /// "bfloat16" and so on; values are compared as numbers where they differ.
  std::string dtype_a, dtype_b;

  bool equal() const {
    return incomparable.empty() && elements_different == 0 && dtype_a == dtype_b;
  }
};

struct DiffReport {
  std::vector<CaptureDiff> captures;         ///< Captures in both, by name in the first.
  std::vector<std::string> captures_only_a;  ///< Arrays without a counterpart.
  std::vector<std::string> captures_only_b;
  std::uint64_t samples_compared = 0;
  std::vector<std::int64_t> samples_only_a;  ///< Rows of the input file.
  std::vector<std::int64_t> samples_only_b;
  /// Samples in both whose token ids differ: not compared.
  std::vector<std::int64_t> samples_with_other_tokens;

  bool equal() const;
};

/// Compares the complete parts of two stores, joined by the sample's row in the input file over
/// any two partitions, aliases resolved. Memory: two windows of rows, and the tokens of one part
/// of each store.
/// @error cancelled  `stop` was requested; looked at every few MiB.
/// @error corrupt | io | not_found
Result<DiffReport> diff_stores(const StoreReader& a, const StoreReader& b,
                               const std::stop_token& stop);

}  // namespace librarian::activation_store
