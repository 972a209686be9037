#pragma once
/// How large a model is, whatever model it is: from the names, shapes and sizes in its headers.

#include <cstdint>
#include <map>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::weightmap {

/// The tensors that one number in their names holds together.
struct LayerSize {
  std::uint32_t layer = 0;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;
};

/// Layers whose names differ in their number only, as "model.layers.".
struct LayerStack {
  std::string prefix;             ///< What comes before the number; ends with a dot.
  std::vector<LayerSize> layers;  ///< By number; numbers may be missing.
  std::uint64_t bytes = 0;
};

struct ModelSizes {
  std::string model_type;          ///< config.json's; empty: it has none.
  std::vector<LayerStack> stacks;  ///< The largest first: a text model's layers before a tower's.
  std::map<std::string, std::uint64_t> bytes_of_dtype;
  std::uint64_t files = 0;
  std::uint64_t tensors = 0;
  std::uint64_t bytes = 0;          ///< Of all tensors.
  std::uint64_t bytes_outside = 0;  ///< Of those in no stack: embedding, head, ...
};

/// Reads config.json's `model_type`, the index and every header, and asks for nothing that a family
/// would have.
/// @error bad_input  No model directory, or a header that is none. Else as Checkpoint::open().
Result<ModelSizes> measure_model(remote::Fetcher& fetcher, const remote::Uri& directory,
                                 const std::stop_token& stop);

/// The part of a tensor's name up to its first number, and the number; false if it has none.
/// @param number  At most nine digits between dots.
bool split_layer_name(std::string_view name, std::string_view& prefix, std::uint32_t& number);

}  // namespace librarian::weightmap
