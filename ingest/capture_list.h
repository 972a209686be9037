#pragma once
/// What the user asked to keep, as arrays of layers. Off by one and before or after the norm are
/// the mistakes this exists to prevent: every notation becomes one canonical name.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/capture_options.h"

namespace librarian::ingest {

/// What a model's captures depend on.
struct CaptureShape {
  std::int32_t layer_count = 0;
  bool final_norm = true;                   ///< Else there is no final.post_norm.
  std::vector<std::int32_t> without_mid{};  ///< Layers without resid_mid: parallel ones. Sorted.
  std::uint32_t vocab_size = 0;             ///< Bounds k of logits.topk; 0: unknown.
  std::map<std::int32_t, std::uint32_t> routers{};  ///< Layers with experts -> experts of a token.
};
CaptureShape capture_shape(const gpu_exec::ModelSpec& model);

/// The capture that is a group of arrays, and its arrays by their short names.
inline constexpr const char* kLogitsTopk = "logits.topk";
/// Behind "blocks.N.": the other such capture.
inline constexpr const char* kRouter = "router";

/// Captures of one job, resolved for a model of a given depth.
struct CaptureList {
  /// Canonical names as asked for, e.g. "blocks.12.resid_pre", in order of computation;
  /// "logits.topk" is the last.
  std::vector<std::string> requested;
  /// Requested name -> array, where they differ: `resid_pre@L` is `resid_post@L-1` or `embed`.
  std::map<std::string, std::string> aliases;
  bool embed = false;
  std::vector<std::set<gpu_exec::CapturePoint>> layers;  ///< [layer count]
  bool final_norm = false;                               ///< final.post_norm
  /// Array -> how it is kept; arrays that are kept whole and exactly are not here.
  std::map<std::string, ArrayOptions> options;
  std::optional<LogitsTopk> logits;
  /// Layers whose router's choices are kept -> experts of a token.
  std::map<std::int32_t, std::uint32_t> routers;

  /// Last step that anything needs: -1 only the embedding, L also the final norm or the head.
  std::int32_t last_layer() const;
  /// Names of the tensors of the hidden size that step `layer` writes, in a fixed order.
  std::vector<std::string> arrays_of(std::int32_t layer) const;
  /// How the array of a tensor is kept.
  ArrayOptions options_of(const std::string& array) const;
  /// Whether an array holds all rows after step `layer`, bit for bit; -1 the embedding.
  bool keeps_state_of(std::int32_t layer) const;
  /// What distinguishes jobs: `requested`, each with the options it differs in.
  std::vector<std::string> canonical() const;
  /// Most arrays of arrays_of() that are written at the same time.
  std::size_t arrays_per_layer_max() const;
  /// Arrays of arrays_of(), over all steps.
  std::size_t array_count() const;
};

/// "blocks.12.resid_post"
std::string capture_array_name(std::int32_t layer, gpu_exec::CapturePoint point);

/// Parses capture arguments, each with one or more captures separated by commas outside brackets.
///   NAME[@LAYERS][(key=value,...)]
///   NAME    embed, resid_pre, resid_mid, resid_post, attn_out, router, mlp_out, final.pre_norm,
///           final.post_norm; blocks.N.NAME; hf:i, vllm:i; TransformerLens' hook names;
///           logits.topk; eagle3 and dflash:k, the layers that those drafts are trained on
///   LAYERS  all (the default), 12, -1, [0,8,-1], 0..3 (inclusive), every:8, spread:8
///   key     positions, keep_mantissa_bits, dtype; of router: positions; of logits.topk: k,
///           positions. `router` without layers, or with all: of those that have one.
/// @error invalid_argument  Quotes the part that is wrong and says what is allowed; names both
///                          captures where one tensor is asked for in two ways.
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
