#pragma once
/// Keys of config.json that no forward pass of a text model depends on.

#include <span>

namespace librarian::weightmap {

/// Training, generation, heads, file and library bookkeeping: of any family.
std::span<const char* const> harmless_keys();
/// Of the outer object of a multimodal model.
std::span<const char* const> harmless_wrapper_keys();

}  // namespace librarian::weightmap
