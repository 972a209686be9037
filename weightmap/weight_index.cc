#include "weightmap/weight_index.h"

#include <algorithm>

#include "base/json.h"

namespace librarian::weightmap {

bool is_weight_file_name(std::string_view name) {
  static constexpr std::string_view kSuffix = ".safetensors";
  return name.size() > kSuffix.size() && name.size() <= 255 && name.ends_with(kSuffix) &&
         name.front() != '.' && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

Result<std::map<std::string, std::string>> parse_weight_index(std::string_view json,
                                                              const std::string& what) {
  JsonLimits limits;
  limits.text_bytes_max = 256U << 20U;
  limits.values_max = 2'000'000;
  limits.string_bytes_max = 4096;
  LIB_TRY(const Json document, parse_json(json, what, limits));
  if (!document.contains("weight_map") || !document["weight_map"].is_object() ||
      document["weight_map"].empty()) {
    return Error(ErrorCode::bad_input, what + ": no weight_map with tensors in it");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : document["weight_map"].items()) {
    if (!file.is_string() || !is_weight_file_name(file.get_ref<const std::string&>())) {
      return Error(ErrorCode::bad_input,
                   what + ": weight_map sends tensor '" + tensor.substr(0, 128) + "' to " +
                       file.dump(-1, ' ', true).substr(0, 128) +
                       ", which is not the plain name of a .safetensors file beside it");
    }
    files.emplace(tensor, file.get<std::string>());
  }
  return files;
}

}  // namespace librarian::weightmap
