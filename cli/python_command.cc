#include "cli/python_command.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
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

std::string interpreter() {
  const char* chosen = std::getenv("LIBRARIAN_PYTHON");
  return chosen != nullptr && *chosen != '\0' ? chosen : "python3";
}

/// The interpreter's command line; ends with a null pointer. Points into `words`.
std::vector<char*> arguments_of(std::vector<std::string>& words) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) {
    arguments.push_back(word.data());
  }
  arguments.push_back(nullptr);
  return arguments;
}

/// Runs a program to its end with files as standard input and output.
/// @return  Its exit code; -1 if it could not be started or a signal ended it.
int run_to_end(std::vector<std::string> words, const std::string& input,
               const std::string& output) {
  const std::vector<char*> arguments = arguments_of(words);
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, input.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  sigset_t none;  // This program's threads block signals; the child's must not.
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int failed =
      ::posix_spawnp(&child, arguments.front(), &files, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  int status = 0;
  if (failed != 0 || ::waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
    return -1;
  }
  return WEXITSTATUS(status);
}

}  // namespace

bool is_python_command(std::string_view name) { return name == "tokenize" || name == "export"; }

Error run_python_command(char* const* argv) {
  const std::string python = interpreter();
  std::vector<std::string> words = {python, "-P", "-c", kRunModule};
  for (char* const* argument = argv + 1; *argument != nullptr; ++argument) {
    words.emplace_back(*argument);
  }
  ::execvp(python.c_str(), arguments_of(words).data());
  return Error(ErrorCode::invalid_argument,
               "cannot start " + python + ": " + std::strerror(errno) +
                   "; install Python 3.11 or later, or name it with LIBRARIAN_PYTHON");
}

std::string decode_tokens(const std::string& tokenizer, const std::string& ids,
                          const std::string& directory) {
  const std::string input = directory + "/sample.json";
  const std::string output = directory + "/sample.txt";
  std::ofstream(input) << ids;
  const int code = run_to_end({interpreter(), "-P", "-c", kRunModule, "tokenize", "--tokenizer",
                               tokenizer, "--decode", "-"},
                              input, output);
  if (code != 0) {
    return "";
  }
  std::ifstream file(output);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace librarian::cli
