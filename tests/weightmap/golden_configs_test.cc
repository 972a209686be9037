// Goal: every config.json of the golden checkpoints, written by transformers itself, is read; or
// refused, where the golden is there to be refused.
// Method: the files of tests/golden; what their numbers are is shown by
// tests/python/test_golden.py.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "weightmap/model_config.h"

namespace librarian::weightmap {
namespace {

TEST(GoldenConfigs, AreAllRead) {
  // Checkpoints of transformers that need arithmetic we do not have.
  const std::set<std::string> refused{"falcon_alibi"};
  std::size_t seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LIBRARIAN_GOLDEN_DIR)) {
    const std::filesystem::path file = entry.path() / "model" / "config.json";
    if (!std::filesystem::exists(file)) {
      continue;
    }
    ++seen;
    std::ostringstream text;
    text << std::ifstream(file).rdbuf();
    const auto config = parse_model_config(text.str(), file.string());
    const bool known = refused.contains(entry.path().filename().string());
    EXPECT_EQ(config.has_value(), !known)
        << file << (config ? "" : ": " + config.error().message());
    if (config) {
      EXPECT_TRUE(config->warnings.empty()) << file << ": " << config->warnings.front();
    }
  }
  EXPECT_GE(seen, 40U) << "goldens are missing in " << LIBRARIAN_GOLDEN_DIR;
}

}  // namespace
}  // namespace librarian::weightmap
