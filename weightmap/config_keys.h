#pragma once
/// Keys of config.json that no forward pass of a text model depends on, and checks of those that
/// must say what we compute.

#include <span>
#include <string>

#include "base/error.h"
#include "weightmap/config_reader.h"
#include "weightmap/family.h"

namespace librarian::weightmap {

/// Keys that we know, and that must be absent or say what we compute.
/// @error bad_input  Names the key and what it would need.
Result<void> check_fixed(ConfigReader& config, std::span<const FixedKey> rows);

/// What holds for any document, and for the outer object of a multimodal one: no encoder. Marks
/// training, generation, heads, file and library bookkeeping as read.
Result<void> check_any(ConfigReader& config);

/// Marks what the outer object of a multimodal model says about its other parts as read.
void ignore_other_parts(ConfigReader& config);

/// @error bad_input  Names a key that nobody looked at.
Result<void> check_unused(const ConfigReader& config, const std::string& model_type);

}  // namespace librarian::weightmap
