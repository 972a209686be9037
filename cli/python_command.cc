#include "cli/python_command.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace librarian::cli {
namespace {

// As `python3 -m`, which would call a missing module an internal error. -P: modules that lie in the
// directory where the user happens to be are not ours.
constexpr const char* kRunModule = R"(
import importlib.util, runpy, sys
command = sys.argv.pop(1)
name = "nexus_librarian." + command
try:
    found = importlib.util.find_spec(name)
except ModuleNotFoundError:
    found = None
if found is None:
    print("librarian: " + sys.executable + " does not find the Python module " + name
          + "; install it with 'pip install nexus-librarian[" + command + "]' ('.[" + command
          + "]' in the source tree), or name another interpreter with LIBRARIAN_PYTHON", file=sys.stderr)
    sys.exit(2)
runpy.run_module(name, run_name="__main__", alter_sys=True)
)";

}  // namespace

bool is_python_command(std::string_view name) { return name == "tokenize" || name == "export"; }

Error run_python_command(char* const* argv) {
  const char* chosen = std::getenv("LIBRARIAN_PYTHON");
  std::string python = chosen != nullptr && *chosen != '\0' ? chosen : "python3";
  std::string safe_path = "-P";
  std::string command = "-c";
  std::string code = kRunModule;
  std::vector<char*> arguments = {python.data(), safe_path.data(), command.data(), code.data()};
  for (char* const* argument = argv + 1; *argument != nullptr; ++argument) {
    arguments.push_back(*argument);
  }
  arguments.push_back(nullptr);
  ::execvp(python.c_str(), arguments.data());
  return Error(ErrorCode::invalid_argument,
               "cannot start " + python + ": " + std::strerror(errno) +
                   "; install Python 3.11 or later, or name it with LIBRARIAN_PYTHON");
}

}  // namespace librarian::cli
