#pragma once
/// Layers and numbers as the user writes them in a capture.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace librarian::ingest {

/// @return  invalid_argument that quotes the capture `text`.
Error wrong_capture(std::string_view text, const std::string& reason);

/// A whole decimal number with an optional minus.
std::optional<std::int64_t> parse_integer(std::string_view text);

/// A layer of the model, negative ones from its end.
/// @param text  The capture, for the message.
Result<std::int32_t> layer_index(std::string_view text, std::int64_t layer,
                                 std::int32_t layer_count);

/// all, 12, -1, [0,8,-1], 0..3 (inclusive), every:8, spread:8
/// @param text  The capture, for the message.
Result<std::vector<std::int32_t>> parse_layers(std::string_view text, std::string_view layers,
                                               std::int32_t layer_count);

}  // namespace librarian::ingest
