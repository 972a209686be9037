#include "cli/output.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>

namespace librarian::cli {
namespace {

std::atomic<bool> failed{false};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      out += c;
      continue;
    }
    std::array<char, 8> code{};
    std::snprintf(code.data(), code.size(), "\\x%02x", byte);
    out += code.data();
  }
  return out;
}

}  // namespace

void print(const std::string& text) {
  const bool written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!written && errno != EPIPE) {
    failed = true;
  }
}

bool output_failed() { return failed; }

void print_error(const std::string& text) {
  std::fprintf(stderr, "librarian: %s\n", escaped(text).c_str());
}

void print_event(const std::string& name, const Json& fields) {
  Json event = {{"event", name}, {"version", kEventVersion}};
  for (const auto& [key, value] : fields.items()) {
    event[key] = value;
  }
  print(event.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::string fact(const std::string& name, const std::string& value) {
  std::string line = "  " + name;
  line.resize(line.size() < 22 ? 22 : line.size() + 2, ' ');
  return line + value + "\n";
}

}  // namespace librarian::cli
