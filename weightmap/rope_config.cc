#include "weightmap/rope_config.h"

#include <cmath>
#include <numbers>

namespace librarian::weightmap {
namespace {

constexpr double kThetaMin = 1.0;
constexpr double kThetaMax = 1e15;
constexpr double kFactorMax = 1e6;
constexpr std::uint32_t kPositionsMax = 1U << 30U;

/// 1 / theta^(2i / dim): the exponent and the power are f32 in the model's own code, so a wider
/// type here would be further from it, not closer.
std::vector<float> base_frequencies(std::uint32_t dim, double theta) {
  std::vector<float> frequencies(dim / 2);
  for (std::uint32_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    const auto power = static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    frequencies[i] = 1.0F / power;
  }
  return frequencies;
}

Result<void> apply_llama3(ConfigReader& scaling, std::uint32_t max_positions,
                          std::vector<float>& frequencies) {
  LIB_TRY(const double factor, scaling.number("factor", 1.0, kFactorMax));
  LIB_TRY(const double low, scaling.number("low_freq_factor", 1e-6, kFactorMax));
  LIB_TRY(const double high, scaling.number("high_freq_factor", 1e-6, kFactorMax));
  LIB_TRY(const std::uint32_t original,
          scaling.count("original_max_position_embeddings", 1, kPositionsMax, max_positions));
  if (high <= low) {
    return scaling.refuse("high_freq_factor", "must be above low_freq_factor");
  }
  for (float& frequency : frequencies) {
    const double wavelength = 2 * std::numbers::pi / static_cast<double>(frequency);
    if (wavelength > original / low) {
      frequency = static_cast<float>(static_cast<double>(frequency) / factor);
    } else if (wavelength >= original / high) {
      const double smooth = (original / wavelength - low) / (high - low);
      const auto plain = static_cast<double>(frequency);
      frequency = static_cast<float>((1 - smooth) * plain / factor + smooth * plain);
    }
  }
  return {};
}

}  // namespace

Result<RopeConfig> parse_rope(ConfigReader& config, std::uint32_t head_dim,
                              std::uint32_t max_positions, double default_theta) {
  static const Json kNoScaling = Json::object();
  const Json& parameters = config.raw("rope_parameters");
  const Json& old_scaling = config.raw("rope_scaling");
  const bool new_dialect = !parameters.is_null();
  const Json& chosen = new_dialect ? parameters : old_scaling.is_null() ? kNoScaling : old_scaling;
  const char* key = new_dialect ? "rope_parameters" : "rope_scaling";
  if (new_dialect && !old_scaling.is_null()) {
    return config.refuse(key, "and 'rope_scaling' are both there: which one?");
  }
  if (!chosen.is_object()) {
    return config.refuse(key, "is not an object");
  }
  LIB_TRY(double theta, config.number("rope_theta", kThetaMin, kThetaMax, default_theta));

  ConfigReader scaling(chosen, config.what() + ": '" + key + "'");
  LIB_TRY(const std::string old_type, scaling.text("type", "default"));
  LIB_TRY(std::string type, scaling.text("rope_type", old_type));
  if (new_dialect) {
    LIB_TRY(theta, scaling.number("rope_theta", kThetaMin, kThetaMax, theta));
  }
  RopeConfig rope;
  rope.type = type;
  rope.spec.rotary_dim = head_dim;
  rope.spec.inverse_frequency = base_frequencies(head_dim, theta);
  if (type == "linear") {
    LIB_TRY(const double factor, scaling.number("factor", 1e-6, kFactorMax));
    for (float& frequency : rope.spec.inverse_frequency) {
      frequency /= static_cast<float>(factor);
    }
  } else if (type == "llama3") {
    LIB_TRY_VOID(apply_llama3(scaling, max_positions, rope.spec.inverse_frequency));
  } else if (type != "default") {
    return config.refuse(key, "asks for rope type '" + type.substr(0, 64) +
                                  "', which is not built in (built in: default, linear, llama3)");
  }
  for (const std::string& unknown : scaling.unused()) {
    return scaling.refuse(unknown, "is not a key that rope type '" + type + "' uses");
  }
  return rope;
}

}  // namespace librarian::weightmap
