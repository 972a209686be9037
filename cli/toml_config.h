#pragma once
/// --config FILE.toml: the same names as the options, without the dashes.

#include <CLI/CLI.hpp>

namespace librarian::cli {

/// Reads TOML for CLI11. Tables are not allowed: every option is a top-level key; arrays give an
/// option several values. Throws CLI::ConfigError, which CLI11 turns into a usage error.
class TomlConfig final : public CLI::Config {
 public:
  std::string to_config(const CLI::App* app, bool default_also, bool write_description,
                        std::string prefix) const override;
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override;
};

}  // namespace librarian::cli
