#include "weightmap/rope_config.h"

#include <cmath>
#include <optional>

#include "weightmap/rope_frequencies.h"

namespace librarian::weightmap {
namespace {

constexpr double kThetaMin = 1.0;
constexpr double kThetaMax = 1e15;
constexpr double kFactorMax = 1e6;
constexpr std::uint32_t kPositionsMax = 1U << 30U;
constexpr const char* kOriginal = "original_max_position_embeddings";

/// Everything one rope depends on besides its own object in the document.
struct Source {
  ConfigReader& config;
  const RopeForm& form;
  Dialect dialect;
  const char* key;  ///< "rope_parameters" or "rope_scaling"
  bool new_style;   ///< The object holds theta and the turning part too.
  bool nested;
  std::uint32_t head_dim;
  std::uint32_t max_positions;
  double theta;
};

/// The context a stretched model was trained with. It stands inside the object or beside it; 4 of
/// transformers looks beside for "longrope" only and inside for the others, 5 beside first.
Result<std::uint32_t> read_original(const Source& from, ConfigReader& scaling, bool longrope) {
  const bool old_longrope = longrope && from.dialect == Dialect::v4;
  const bool beside = from.form.original != 0 || (from.config.has(kOriginal) && !from.nested &&
                                                  (old_longrope || from.dialect == Dialect::v5));
  LIB_TRY(const std::uint32_t inside, scaling.count(kOriginal, 2, kPositionsMax, 0U));
  std::uint32_t original = inside != 0 ? inside : from.max_positions;
  if (beside) {
    LIB_TRY(original, from.config.count(kOriginal, 2, kPositionsMax, from.form.original));
  } else if (old_longrope) {
    original = from.max_positions;
  }
  if (inside != 0 && inside != original) {
    return scaling.refuse(kOriginal, "is " + std::to_string(inside) + ", and the model's is " +
                                         std::to_string(original) + ": which one?");
  }
  return original;
}

Result<void> read_llama3(const Source& from, ConfigReader& scaling, gpu_exec::RopeSpec& rope) {
  Llama3Scaling values{};
  LIB_TRY(values.factor, scaling.number("factor", 1.0, kFactorMax));
  LIB_TRY(values.low, scaling.number("low_freq_factor", 1e-6, kFactorMax));
  LIB_TRY(values.high, scaling.number("high_freq_factor", 1e-6, kFactorMax));
  LIB_TRY(values.original, read_original(from, scaling, false));
  if (values.high <= values.low) {
    return scaling.refuse("high_freq_factor", "must be above low_freq_factor");
  }
  rope.inverse_frequency = llama3_frequencies(rope.rotary_dim, from.theta, values);
  return {};
}

Result<void> read_yarn(const Source& from, ConfigReader& scaling, gpu_exec::RopeSpec& rope) {
  YarnScaling values{};
  LIB_TRY(values.original, read_original(from, scaling, false));
  std::optional<double> ratio;
  if (from.dialect == Dialect::v5) {
    ratio = static_cast<double>(from.max_positions) / values.original;
  }
  LIB_TRY(values.factor, scaling.number("factor", 1e-6, kFactorMax, ratio));
  LIB_TRY(values.beta_fast, scaling.number("beta_fast", 0, kFactorMax, 32.0));
  LIB_TRY(values.beta_slow, scaling.number("beta_slow", 0, kFactorMax, 1.0));
  // Zero counts as absent there.
  values.beta_fast = values.beta_fast == 0 ? 32.0 : values.beta_fast;
  values.beta_slow = values.beta_slow == 0 ? 1.0 : values.beta_slow;
  LIB_TRY(values.truncate, scaling.flag("truncate", true));
  if (from.nested && !values.truncate) {
    return scaling.refuse("truncate", "is false, which transformers ignores in a rope per layer");
  }
  LIB_TRY(const double mscale, scaling.number("mscale", 0, kFactorMax, 0.0));
  LIB_TRY(const double mscale_all, scaling.number("mscale_all_dim", 0, kFactorMax, 0.0));
  const double multiplier =
      mscale != 0 && mscale_all != 0
          ? yarn_multiplier(values.factor, mscale) / yarn_multiplier(values.factor, mscale_all)
          : yarn_multiplier(values.factor, 1.0);
  LIB_TRY(const double given, scaling.number("attention_factor", 0, kFactorMax, multiplier));
  if (from.theta <= 1) {
    return scaling.refuse("rope_theta", "must be above 1 for rope type 'yarn'");
  }
  rope.cos_sin_multiplier = static_cast<float>(given);
  rope.inverse_frequency = yarn_frequencies(rope.rotary_dim, from.theta, values);
  return {};
}

Result<void> read_longrope(const Source& from, ConfigReader& scaling, gpu_exec::RopeSpec& rope) {
  const std::size_t pairs = rope.rotary_dim / 2;
  LIB_TRY(const std::vector<double> shorter,
          scaling.numbers("short_factor", pairs, 1e-6, kFactorMax));
  LIB_TRY(const std::vector<double> longer,
          scaling.numbers("long_factor", pairs, 1e-6, kFactorMax));
  LIB_TRY(const std::uint32_t original, read_original(from, scaling, true));
  const double ratio = static_cast<double>(from.max_positions) / original;
  const bool beside = from.form.original != 0 || from.config.has(kOriginal);
  const bool by_ratio = from.dialect == Dialect::v5 || beside;
  LIB_TRY(double factor, scaling.number("factor", 1e-6, kFactorMax, by_ratio ? ratio : 0.0));
  if (from.dialect == Dialect::v4 && beside) {
    factor = ratio;  // There the ratio counts before the factor.
  }
  if (factor == 0 && !scaling.has("attention_factor")) {
    return scaling.refuse("factor", "is missing");
  }
  LIB_TRY(const double multiplier,
          scaling.number("attention_factor", 0, kFactorMax, longrope_multiplier(factor, original)));
  rope.cos_sin_multiplier = static_cast<float>(multiplier);
  rope.inverse_frequency = longrope_frequencies(rope.rotary_dim, from.theta, shorter);
  rope.long_inverse_frequency = longrope_frequencies(rope.rotary_dim, from.theta, longer);
  rope.short_rows_max = original;
  return {};
}

Result<void> read_dynamic(const Source& from, ConfigReader& scaling, gpu_exec::RopeSpec& rope) {
  LIB_TRY(rope.dynamic_factor, scaling.number("factor", 1.0, kFactorMax));
  LIB_TRY(const std::uint32_t original,
          scaling.count(kOriginal, 1, kPositionsMax, from.max_positions));
  if (original != from.max_positions) {
    return scaling.refuse(kOriginal,
                          "is not max_position_embeddings, and rope type 'dynamic' counts from "
                          "that");
  }
  if (rope.rotary_dim < 4) {
    return scaling.refuse("rope_type", "is 'dynamic', which needs at least 4 turning dimensions");
  }
  if (from.form.alpha) {
    LIB_TRY(const double alpha, scaling.number("alpha", 0, kFactorMax, 0.0));
    for (const char* key : {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}) {
      scaling.ignore(key);  // Of another type; written besides.
    }
    if (alpha != 0) {  // Nothing grows with the sample then, whatever the type's name says.
      const double dim = rope.rotary_dim;
      rope.inverse_frequency =
          default_frequencies(rope.rotary_dim, from.theta * std::pow(alpha, dim / (dim - 2)));
      return {};
    }
  }
  rope.dynamic_theta = from.theta;
  rope.short_rows_max = from.max_positions;
  return {};
}

Result<void> read_type(const Source& from, ConfigReader& scaling, const std::string& type,
                       gpu_exec::RopeSpec& rope) {
  rope.inverse_frequency = default_frequencies(rope.rotary_dim, from.theta);
  if (type == "default") {
    return {};
  }
  if (type == "linear") {
    LIB_TRY(const double factor, scaling.number("factor", 1e-6, kFactorMax));
    for (float& frequency : rope.inverse_frequency) {
      frequency /= static_cast<float>(factor);
    }
    return {};
  }
  if (type == "dynamic") {
    return read_dynamic(from, scaling, rope);
  }
  if (type == "llama3") {
    return read_llama3(from, scaling, rope);
  }
  if (type == "yarn") {
    return read_yarn(from, scaling, rope);
  }
  if (type == "longrope") {
    return read_longrope(from, scaling, rope);
  }
  return from.config.refuse(from.key, "asks for rope type '" + type.substr(0, 64) +
                                          "', which is not built in (built in: default, linear, "
                                          "dynamic, llama3, yarn, longrope)");
}

/// Leading dimensions of a head that turn.
Result<std::uint32_t> read_rotary_dim(const Source& from, ConfigReader& scaling) {
  constexpr const char* kPart = "partial_rotary_factor";
  double fallback = from.form.part;
  if (from.form.part_by_dim && from.config.has("rotary_dim")) {
    LIB_TRY(const std::uint32_t dim, from.config.count("rotary_dim", 2, from.head_dim));
    fallback = static_cast<double>(dim) / from.head_dim;
  }
  LIB_TRY(double part, from.config.number(kPart, 0, 1, fallback));
  if (from.new_style) {
    LIB_TRY(part, scaling.number(kPart, 0, 1, part));
  }
  if (!from.form.partial && part != 1) {
    return from.config.refuse(kPart, "is not 1, and this family turns all of a head");
  }
  const auto dim = static_cast<std::uint32_t>(from.head_dim * part);
  if (dim < 2 || dim % 2 != 0) {
    return from.config.refuse(kPart, "leaves " + std::to_string(dim) +
                                         " turning dimensions of a head; rotary embedding turns "
                                         "pairs");
  }
  return dim;
}

Result<RopeConfig> read_one(Source from, const Json& object) {
  if (!object.is_object()) {
    return from.config.refuse(from.key, "is not an object");
  }
  ConfigReader scaling(object, from.config.what() + ": '" + from.key + "'");
  LIB_TRY(const std::string old_type, scaling.text("type", "default"));
  LIB_TRY(std::string type, scaling.text("rope_type", old_type));
  if (scaling.has("type") && type != old_type) {
    from.config.warn(from.key, "has 'rope_type' '" + type.substr(0, 64) + "' and 'type' '" +
                                   old_type.substr(0, 64) +
                                   "': the first counts, as in transformers");
  }
  if (from.form.longrope_aliases && (type == "su" || type == "yarn")) {
    type = "longrope";
  }
  if (from.new_style) {
    LIB_TRY(from.theta, scaling.number("rope_theta", kThetaMin, kThetaMax, from.theta));
  }
  RopeConfig rope;
  rope.type = type;
  rope.spec.style = from.form.style;
  LIB_TRY(rope.spec.rotary_dim, read_rotary_dim(from, scaling));
  LIB_TRY_VOID(read_type(from, scaling, type, rope.spec));
  if (type == "yarn") {
    LIB_TRY(const double mscale_all, scaling.number("mscale_all_dim", 0, kFactorMax, 0.0));
    LIB_TRY(const double factor, scaling.number("factor", 1e-6, kFactorMax, 1.0));
    const double mscale = mscale_all == 0 ? 1.0 : yarn_multiplier(factor, mscale_all);
    rope.score_multiplier = mscale * mscale;
  }
  if (from.form.temperature) {
    scaling.ignore("max_position_embeddings");
    LIB_TRY(rope.temperature_beta, scaling.number("llama_4_scaling_beta", 0, kFactorMax));
    LIB_TRY(rope.temperature_original,
            scaling.count(kOriginal, 1, kPositionsMax, from.max_positions));
  }
  for (const std::string& unknown : scaling.unused()) {
    return scaling.refuse(unknown.substr(0, 128),
                          "is not a key that rope type '" + type.substr(0, 64) + "' uses");
  }
  return rope;
}

/// theta from beside the object, or what this family takes when nobody gives one.
Result<double> read_theta(ConfigReader& config, const RopeForm& form, Dialect dialect,
                          bool given_inside) {
  const double fallback = dialect == Dialect::v5 ? form.theta_v5 : form.theta;
  LIB_TRY(const double theta, config.number("rope_theta", kThetaMin, kThetaMax, fallback));
  if (!config.has("rope_theta") && !given_inside && form.theta != form.theta_v5) {
    config.warn("rope_theta",
                "is absent: transformers 4 takes " +
                    std::to_string(static_cast<std::uint64_t>(form.theta)) +
                    ", transformers 5 takes " +
                    std::to_string(static_cast<std::uint64_t>(form.theta_v5)) +
                    "; taken: " + std::to_string(static_cast<std::uint64_t>(fallback)));
  }
  return theta;
}

bool gives_theta(const Json& object) {
  return object.is_object() && object.contains("rope_theta") && !object["rope_theta"].is_null();
}

/// Layers with a window turn by a second, unscaled rope.
Result<RopeConfig> read_two(Source from, const Json& object) {
  static const Json nothing = Json::object();
  const RopeForm& form = from.form;
  const Json* full = &object;
  const Json* local = &nothing;
  if (from.new_style) {
    for (const auto& [label, value] : object.items()) {
      if ((label != "full_attention" && label != "sliding_attention") ||
          !(value.is_object() || value.is_null())) {
        return from.config.refuse(from.key,
                                  "is not one object per kind of layer, "
                                  "full_attention and sliding_attention");
      }
      (label == "full_attention" ? full : local) = value.is_null() ? &nothing : &value;
    }
    full = full == &object ? &nothing : full;
    from.nested = true;
  }
  LIB_TRY(from.theta, read_theta(from.config, form, from.dialect,
                                 gives_theta(*full) &&
                                     (form.rule == RopeRule::local_theta || gives_theta(*local))));
  LIB_TRY(RopeConfig rope, read_one(from, *full));
  Source second = from;
  if (form.rule == RopeRule::local_theta) {
    LIB_TRY(second.theta,
            from.config.number("rope_local_base_freq", kThetaMin, kThetaMax, form.local_theta));
  }
  LIB_TRY(RopeConfig other, read_one(second, *local));
  rope.local = std::move(other.spec);
  return rope;
}

}  // namespace

Result<RopeConfig> read_rope(ConfigReader& config, const RopeForm& form, Dialect dialect,
                             std::uint32_t head_dim, std::uint32_t max_positions) {
  if (form.rule == RopeRule::none) {
    return RopeConfig{.type = "none", .spec = {}, .local = {}};
  }
  if (form.original != 0) {
    config.ignore(kOriginal);  // Written where nothing is stretched, too.
  }
  static const Json nothing = Json::object();
  const Json& parameters = config.raw("rope_parameters");
  const Json& old_scaling = config.raw("rope_scaling");
  if (!parameters.is_null() && !old_scaling.is_null()) {
    return config.refuse("rope_parameters", "and 'rope_scaling' are both there: which one?");
  }
  const bool new_style = !parameters.is_null();
  if (!form.scaling && !old_scaling.is_null() && dialect == Dialect::v4) {
    return config.refuse("rope_scaling", "is there, and transformers 4 ignores it in this family");
  }
  Json absent;
  // To 4 of transformers a null says that nothing is stretched, to 5 that nothing is said.
  const bool plain = dialect == Dialect::v4 && config.is_null("rope_scaling");
  if (form.absent != nullptr && parameters.is_null() && old_scaling.is_null() && !plain) {
    LIB_TRY(absent, parse_json(form.absent, "the family's default"));
  }
  const Json& object = new_style               ? parameters
                       : !absent.is_null()     ? absent
                       : old_scaling.is_null() ? nothing
                                               : old_scaling;
  Source from{config,
              form,
              dialect,
              new_style ? "rope_parameters" : "rope_scaling",
              new_style || dialect == Dialect::v5 || !absent.is_null(),
              false,
              head_dim,
              max_positions,
              0.0};
  if (!object.is_object()) {
    return config.refuse(from.key, "is not an object");
  }
  if (form.rule != RopeRule::one) {
    from.new_style = new_style;
    return read_two(from, object);
  }
  if (object.contains("full_attention") || object.contains("sliding_attention")) {
    return config.refuse(from.key, "is one object per kind of layer; this family has one for all");
  }
  LIB_TRY(from.theta, read_theta(config, form, dialect, gives_theta(object)));
  LIB_TRY(RopeConfig rope, read_one(from, object));
  rope.local = rope.spec;
  return rope;
}

}  // namespace librarian::weightmap
