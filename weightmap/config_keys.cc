#include "weightmap/config_keys.h"

#include <array>
#include <string_view>
#include <variant>

namespace librarian::weightmap {
namespace {

constexpr std::array kHarmless{"_attn_implementation",
                               "_attn_implementation_autoset",
                               "_commit_hash",
                               "_name_or_path",
                               "activation_dropout",
                               "add_cross_attention",
                               "architectures",
                               "attention_dropout",
                               "attention_probs_dropout_prob",
                               "attn_implementation",
                               "auto_map",
                               "attn_pdrop",
                               "bad_words_ids",
                               "begin_suppress_tokens",
                               "bos_token_id",
                               "cache_implementation",
                               "chunk_size_feed_forward",
                               "classifier_dropout",
                               "cls_token_id",
                               "cross_attention_hidden_size",
                               "decoder_start_token_id",
                               "diversity_penalty",
                               "do_sample",
                               "dropout",
                               "early_stopping",
                               "embd_pdrop",
                               "embedding_dropout",
                               "encoder_no_repeat_ngram_size",
                               "eos_token_id",
                               "experts_implementation",
                               "exponential_decay_length_penalty",
                               "finetuning_task",
                               "forced_bos_token_id",
                               "forced_decoder_ids",
                               "forced_eos_token_id",
                               "gradient_checkpointing",
                               "hidden_dropout",
                               "hidden_dropout_prob",
                               "id2label",
                               "init_std",
                               "initializer_range",
                               "is_decoder",
                               "label2id",
                               "layerdrop",
                               "length_penalty",
                               "mask_token_id",
                               "max_length",
                               "min_length",
                               "model_max_length",
                               "name_or_path",
                               "no_repeat_ngram_size",
                               "num_beam_groups",
                               "num_beams",
                               "num_labels",
                               "num_return_sequences",
                               "output_attentions",
                               "output_hidden_states",
                               "output_scores",
                               "pad_token_id",
                               "prefix",
                               "pretraining_tp",
                               "problem_type",
                               "remove_invalid_values",
                               "repetition_penalty",
                               "resid_pdrop",
                               "residual_dropout",
                               "return_dict",
                               "return_dict_in_generate",
                               "sep_token_id",
                               "suppress_tokens",
                               "task_specific_params",
                               "temperature",
                               "tf_legacy_loss",
                               "tie_encoder_decoder",
                               "tokenizer_class",
                               "top_k",
                               "top_p",
                               "torchscript",
                               "transformers_version",
                               "typical_p",
                               "unk_token_id",
                               "unsloth_fixed",
                               "unsloth_version",
                               "use_bfloat16",
                               "use_cache"};
constexpr std::array kWrapper{"adapter_layer_norm_eps",
                              "alignment_intermediate_size",
                              "audio_config",
                              "boi_token_id",
                              "boi_token_index",
                              "downsample_factor",
                              "downsample_ratio",
                              "eoi_token_id",
                              "eoi_token_index",
                              "ignore_index",
                              "image_grid_pinpoints",
                              "image_seq_length",
                              "image_token_id",
                              "image_token_index",
                              "max_splits_per_img",
                              "media_placeholder_token_id",
                              "mm_tokens_per_image",
                              "multimodal_projector_bias",
                              "num_additional_image_tokens",
                              "projector_hidden_act",
                              "projector_intermediate_size",
                              "spatial_merge_size",
                              "use_image_newline_parameter",
                              "use_unified_vision_chunk",
                              "video_placeholder",
                              "vision_config",
                              "vision_feature_layer",
                              "vision_feature_select_strategy",
                              "vision_soft_tokens_per_image"};

constexpr std::array kFixedOfAll{FixedKey{"is_encoder_decoder", false, "an encoder and a decoder"}};

std::string shown(const std::variant<bool, double, std::string_view>& value) {
  if (const auto* flag = std::get_if<bool>(&value)) {
    return *flag ? "true" : "false";
  }
  if (const auto* number = std::get_if<double>(&value)) {
    return std::to_string(static_cast<std::int64_t>(*number));
  }
  return "'" + std::string(std::get<std::string_view>(value)) + "'";
}

bool equals(const Json& json, const std::variant<bool, double, std::string_view>& value) {
  if (const auto* flag = std::get_if<bool>(&value)) {
    return json.is_boolean() && json.get<bool>() == *flag;
  }
  if (const auto* number = std::get_if<double>(&value)) {
    return json.is_number() && json.get<double>() == *number;
  }
  return json.is_string() &&
         json.get_ref<const std::string&>() == std::get<std::string_view>(value);
}

}  // namespace

Result<void> check_fixed(ConfigReader& config, std::span<const FixedKey> rows) {
  for (const FixedKey& row : rows) {
    const Json& value = config.raw(row.key);
    if (!value.is_null() && !equals(value, row.value)) {
      return config.refuse(row.key, "is " + value.dump(-1, ' ', true).substr(0, 64) + ", not " +
                                        shown(row.value) + ": that needs " + row.missing +
                                        ", which is not built in");
    }
  }
  return {};
}

Result<void> check_any(ConfigReader& config) {
  LIB_TRY_VOID(check_fixed(config, kFixedOfAll));
  config.ignore("quantization_config");  // parse_model_config() reads it.
  const Json& pruned = config.raw("pruned_heads");
  if (!pruned.is_null() && !(pruned.is_object() && pruned.empty())) {
    return config.refuse("pruned_heads", "is not empty: layers of other shapes are not built in");
  }
  for (const char* key : kHarmless) {
    config.ignore(key);
  }
  return {};
}

Result<void> check_unused(const ConfigReader& config, const std::string& model_type) {
  for (const std::string& unknown : config.unused()) {
    return config.refuse(unknown.substr(0, 128),
                         "is a key that is neither used nor known to be harmless for model_type '" +
                             model_type + "'");
  }
  return {};
}

void ignore_other_parts(ConfigReader& config) {
  for (const char* key : kWrapper) {
    config.ignore(key);
  }
}

}  // namespace librarian::weightmap
