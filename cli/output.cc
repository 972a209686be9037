#include "cli/output.h"

#include <cstdio>

namespace librarian::cli {

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
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
