#pragma once
/// What the user asked to keep, as arrays of layers. Off by one and before or after the norm are
/// the mistakes this exists to prevent: every notation becomes one canonical name.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "gpu_exec/layer_executor.h"

namespace librarian::ingest {

/// What a model's captures depend on.
struct CaptureShape {
  std::int32_t layer_count = 0;
  bool final_norm = true;                   ///< Else there is no final.post_norm.
  std::vector<std::int32_t> without_mid{};  ///< Layers without resid_mid: parallel ones. Sorted.
};
CaptureShape capture_shape(const gpu_exec::ModelSpec& model);

/// Captures of one job, resolved for a model of a given depth.
struct CaptureList {
  /// Canonical names as asked for, e.g. "blocks.12.resid_pre", in order of computation.
  std::vector<std::string> requested;
  /// Requested name -> array, where they differ: `resid_pre@L` is `resid_post@L-1` or `embed`.
  std::map<std::string, std::string> aliases;
  bool embed = false;
  std::vector<std::set<gpu_exec::CapturePoint>> layers;  ///< [layer count]
  bool final_norm = false;                               ///< final.post_norm

  /// Last step that anything needs: -1 only the embedding, L also the final norm.
  std::int32_t last_layer() const;
  /// Names of the arrays that step `layer` writes, in a fixed order.
  std::vector<std::string> arrays_of(std::int32_t layer) const;
  /// Most arrays that are written at the same time.
  std::size_t arrays_per_layer_max() const;
  std::size_t array_count() const;
};

/// "blocks.12.resid_post"
std::string capture_array_name(std::int32_t layer, gpu_exec::CapturePoint point);

/// Parses capture arguments, each with one or more captures separated by commas outside brackets.
///   NAME[@LAYERS][(key=value,...)]
///   NAME    embed, resid_pre, resid_mid, resid_post, attn_out, mlp_out, final.pre_norm,
///           final.post_norm; blocks.N.NAME; hf:i, vllm:i; TransformerLens' hook names
///   LAYERS  all (the default), 12, -1, [0,8,-1], 0..3 (inclusive), every:8, spread:8
/// @error invalid_argument  Quotes the part that is wrong and says what is allowed.
Result<CaptureList> parse_captures(const std::vector<std::string>& arguments,
                                   const CaptureShape& shape);

/// The names that other tools use for a canonical capture: transformers, vLLM, TransformerLens;
/// "-" where a tool has none. For `plan`.
struct CaptureNotations {
  std::string hf;
  std::string vllm;
  std::string transformer_lens;
};
CaptureNotations capture_notations(const std::string& canonical, const CaptureShape& shape);

}  // namespace librarian::ingest
