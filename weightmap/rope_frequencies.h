#pragma once
/// The frequencies of each rope type, from numbers that were checked.
/// All arithmetic is f32 in the order of transformers' own code: a wider type would be further
/// from it, and at position 10^5 the last bit of a frequency is 10^-2 of an angle.

#include <cstdint>
#include <span>
#include <vector>

namespace librarian::weightmap {

/// theta^(2i / dim) for i < dim / 2.
std::vector<float> rope_powers(std::uint32_t dim, double theta);
/// 1 / rope_powers().
std::vector<float> default_frequencies(std::uint32_t dim, double theta);

struct Llama3Scaling {
  double factor, low, high;
  std::uint32_t original;
};
std::vector<float> llama3_frequencies(std::uint32_t dim, double theta, const Llama3Scaling&);

struct YarnScaling {
  double factor, beta_fast, beta_slow;
  std::uint32_t original;
  bool truncate;
};
std::vector<float> yarn_frequencies(std::uint32_t dim, double theta, const YarnScaling&);
/// 0.1 * mscale * log(factor) + 1, or 1 where nothing is stretched.
double yarn_multiplier(double factor, double mscale);

/// @param factors  [dim / 2], short or long.
std::vector<float> longrope_frequencies(std::uint32_t dim, double theta,
                                        std::span<const double> factors);
double longrope_multiplier(double factor, std::uint32_t original);

}  // namespace librarian::weightmap
