#include "cli/toml_config.h"

#include <toml++/toml.h>

#include <optional>
#include <sstream>

#include "base/file_system.h"

namespace librarian::cli {
namespace {

constexpr std::uint64_t kConfigBytesMax = 1U << 20U;

std::optional<std::string> scalar_text(const toml::node& node) {
  if (const auto* text = node.as_string()) {
    return text->get();
  }
  if (const auto* flag = node.as_boolean()) {
    return flag->get() ? "true" : "false";
  }
  std::ostringstream out;
  if (const auto* integer = node.as_integer()) {
    out << integer->get();
  } else if (const auto* real = node.as_floating_point()) {
    out << real->get();
  } else {
    return std::nullopt;
  }
  return out.str();
}

}  // namespace

Result<std::vector<ConfigSetting>> read_toml_config(const std::string& path) {
  const auto wrong = [&](const std::string& reason) {
    return Error(ErrorCode::invalid_argument, "--config " + path + ": " + reason);
  };
  const auto text = read_small_file(posix_file_system(), path, kConfigBytesMax);
  if (!text) {
    return wrong(text.error().message());
  }
  toml::table table;
  try {
    table = toml::parse(*text);
  } catch (const toml::parse_error& error) {
    return wrong("not TOML: " + std::string(error.description()) + " at line " +
                 std::to_string(error.source().begin.line));
  }
  std::vector<ConfigSetting> settings;
  for (const auto& [key, node] : table) {
    ConfigSetting setting{std::string(key.str()), {}};
    const auto* list = node.as_array();
    const std::size_t count = list != nullptr ? list->size() : 1;
    for (std::size_t i = 0; i < count; ++i) {
      const std::optional<std::string> value = scalar_text(list != nullptr ? (*list)[i] : node);
      if (!value) {
        return wrong("'" + setting.name +
                     "' must be a string, a number, true, false or a list of these");
      }
      setting.values.push_back(*value);
    }
    settings.push_back(std::move(setting));
  }
  return settings;
}

}  // namespace librarian::cli
