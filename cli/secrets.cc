#include "cli/secrets.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <string_view>

#include "base/text.h"

namespace librarian::cli {
namespace {

constexpr std::size_t kFileBytesMax = 64U << 10U;

// What a transfer is made of; another value would break it or its checks.
constexpr std::string_view kOurs[] = {
    "accept-encoding", "connection",        "content-length", "host", "if-match", "range", "te",
    "trailer",         "transfer-encoding", "upgrade"};

bool is_token_character(unsigned char c) {
  return std::isalnum(c) != 0 ||
         std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
}

/// Why the line is no header of a user's; nothing if it is one.
std::string objection(std::string_view line) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0 ||
      !std::all_of(line.begin(), line.begin() + static_cast<std::ptrdiff_t>(colon),
                   is_token_character)) {
    return "is not 'Name: value'";
  }
  const std::string name = lower_case(line.substr(0, colon));
  if (std::find(std::begin(kOurs), std::end(kOurs), name) != std::end(kOurs)) {
    return "sets a header that belongs to the transfer";
  }
  if (line.find_first_not_of(" \t", colon + 1) == std::string_view::npos) {
    return "has no value";
  }
  const bool printable = std::all_of(
      line.begin(), line.end(), [](unsigned char c) { return c == '\t' || (c >= 32 && c != 127); });
  return printable ? "" : "has a control character";
}

}  // namespace

Result<std::vector<std::string>> read_header_file(const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    return Error(ErrorCode::invalid_argument, "--header-file " + path + ": " + why);
  };
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return refuse("no such file");
  }
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return refuse("others may read it; run: chmod 600 " + path);
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(kFileBytesMax + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  if (file.bad() || text.size() > kFileBytesMax) {
    return refuse("cannot be read, or is larger than 64 KiB");
  }
  std::vector<std::string> headers;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) {
      line.pop_back();
    }
    if (line.empty() || line.front() == '#') {
      continue;
    }
    if (const std::string why = objection(line); !why.empty()) {
      return refuse("line " + std::to_string(number) + " " + why);
    }
    headers.push_back(std::move(line));
  }
  return headers;
}

void forbid_core_files() {
  const rlimit none{0, 0};
  static_cast<void>(::setrlimit(RLIMIT_CORE, &none));
  // A limit does not hold for cores that go to a program; this does.
  static_cast<void>(::prctl(PR_SET_DUMPABLE, 0));
}

}  // namespace librarian::cli
