#include "cli/toml_config.h"

#include <toml++/toml.h>

#include <sstream>

namespace librarian::cli {
namespace {

std::string scalar_text(const toml::node& node, const std::string& key) {
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
    throw CLI::ConfigError("--config: '" + key +
                           "' must be a string, a number, true, false or a list of these");
  }
  return out.str();
}

}  // namespace

std::string TomlConfig::to_config(const CLI::App* /*app*/, bool /*default_also*/,
                                  bool /*write_description*/, std::string /*prefix*/) const {
  return "";
}

std::vector<CLI::ConfigItem> TomlConfig::from_config(std::istream& input) const {
  toml::table table;
  try {
    table = toml::parse(input);
  } catch (const toml::parse_error& error) {
    std::ostringstream where;
    where << error.source().begin;
    throw CLI::ConfigError("--config: not TOML: " + std::string(error.description()) + " at " +
                           where.str());
  }
  std::vector<CLI::ConfigItem> settings;
  for (const auto& [key, node] : table) {
    CLI::ConfigItem item;
    item.name = std::string(key.str());
    if (const auto* list = node.as_array()) {
      for (const toml::node& entry : *list) {
        item.inputs.push_back(scalar_text(entry, item.name));
      }
    } else {
      item.inputs.push_back(scalar_text(node, item.name));
    }
    settings.push_back(std::move(item));
  }
  return settings;
}

}  // namespace librarian::cli
