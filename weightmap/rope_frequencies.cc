#include "weightmap/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace librarian::weightmap {

std::vector<float> rope_powers(std::uint32_t dim, double theta) {
  // There it is the f32 power of an f32 theta; rounding the exact power once comes closest to all
  // of its implementations.
  const auto base = static_cast<double>(static_cast<float>(theta));
  std::vector<float> powers(dim / 2);
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    powers[i] = static_cast<float>(std::pow(base, static_cast<double>(exponent)));
  }
  return powers;
}

std::vector<float> default_frequencies(std::uint32_t dim, double theta) {
  std::vector<float> frequencies = rope_powers(dim, theta);
  for (float& value : frequencies) {
    value = 1.0F / value;
  }
  return frequencies;
}

std::vector<float> llama3_frequencies(std::uint32_t dim, double theta,
                                      const Llama3Scaling& scaling) {
  std::vector<float> frequencies = default_frequencies(dim, theta);
  const auto original = static_cast<double>(scaling.original);
  const auto low_wavelength = static_cast<float>(original / scaling.low);
  const auto high_wavelength = static_cast<float>(original / scaling.high);
  const auto factor = static_cast<float>(scaling.factor);
  for (float& frequency : frequencies) {
    // A number over a tensor is there the tensor's reciprocal, times the number.
    const float wavelength = 1.0F / frequency * static_cast<float>(2 * std::numbers::pi);
    if (wavelength > low_wavelength) {
      frequency = frequency / factor;
    } else if (!(wavelength < high_wavelength)) {
      const float smooth =
          (1.0F / wavelength * static_cast<float>(original) - static_cast<float>(scaling.low)) /
          static_cast<float>(scaling.high - scaling.low);
      const float stretched = (1.0F - smooth) * frequency / factor;
      frequency = stretched + smooth * frequency;
    }
  }
  return frequencies;
}

std::vector<float> yarn_frequencies(std::uint32_t dim, double theta, const YarnScaling& scaling) {
  // The pair that turns `rotations` times over the original context.
  const auto correction = [&](double rotations) {
    return dim * std::log(scaling.original / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(theta));
  };
  double low = correction(scaling.beta_fast);
  double high = correction(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim) - 1);
  if (low == high) {
    high += 0.001;
  }
  std::vector<float> frequencies = rope_powers(dim, theta);
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    const float power = frequencies[i];
    const float ramp =
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1.0F - std::clamp(ramp, 0.0F, 1.0F);
    const float stretched = 1.0F / (static_cast<float>(scaling.factor) * power) * (1.0F - kept);
    frequencies[i] = stretched + 1.0F / power * kept;
  }
  return frequencies;
}

double yarn_multiplier(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

std::vector<float> longrope_frequencies(std::uint32_t dim, double theta,
                                        std::span<const double> factors) {
  std::vector<float> frequencies = rope_powers(dim, theta);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = 1.0F / (static_cast<float>(factors[i]) * frequencies[i]);
  }
  return frequencies;
}

double longrope_multiplier(double factor, std::uint32_t original) {
  return factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original));
}

}  // namespace librarian::weightmap
