#pragma once
/// The one way a failure of the world is reported: a code to act on and a sentence to read.
/// Broken invariants of our own go through LIB_CHECK instead and end the program.

#include <cstdint>
#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace librarian {

/// What a caller can do about a failure; the command line maps each to one exit code.
enum class ErrorCode : std::uint8_t {
  internal,          ///< Our own bug.
  invalid_argument,  ///< A wrong option or call: the caller changes the request.
  bad_input,         ///< The model or the tokens are not usable as they are.
  not_found,         ///< The named file or object does not exist.
  already_exists,    ///< Exclusive creation found something there.
  conflict,          ///< The output is busy, foreign, or belongs to another job.
  does_not_fit,      ///< Memory or disk limits are too small for the plan.
  no_space,          ///< The disk is full (ENOSPC, EDQUOT, EFBIG).
  io,                ///< The disk or file system failed otherwise.
  unavailable,       ///< A remote failed; worth another try later.
  source_changed,    ///< The origin now serves other bytes than the job began with.
  corrupt,           ///< Stored bytes are not what was written.
  cancelled,         ///< A stop was requested; nothing is wrong.
};

/// The code's name as logs and JSON show it, e.g. "source_changed".
const char* error_code_name(ErrorCode code);

/// A failure: code and one sentence saying what, where (URI or file, byte range) and what to do.
class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }

  /// The same failure with `context` put before its message, e.g. the file being read.
  Error with_context(const std::string& context) const {
    return Error(code_, context + ": " + message_);
  }
  /// The same message under another code: where a caller knows better what can be done about it.
  Error with_code(ErrorCode code) const { return Error(code, message_); }

 private:
  ErrorCode code_;
  std::string message_;
};

/// A value or an Error. `return Error(...)` and `return value` both convert.
template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}  // NOLINT: implicit on purpose
};

template <>
class [[nodiscard]] Result<void> : public tl::expected<void, Error> {
 public:
  using Base = tl::expected<void, Error>;
  using Base::Base;
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}  // NOLINT: implicit on purpose
};

/// Prints the broken invariant with its place and aborts. On in release builds: the job writes
/// data that outlives it, so going on with a broken state is worse than stopping.
[[noreturn]] void check_failed(const char* condition, const char* file, int line);

}  // namespace librarian

#define LIB_CHECK(condition)                                     \
  do {                                                           \
    if (!(condition)) {                                          \
      ::librarian::check_failed(#condition, __FILE__, __LINE__); \
    }                                                            \
  } while (false)

#define LIB_CONCAT_INNER(a, b) a##b
#define LIB_CONCAT(a, b) LIB_CONCAT_INNER(a, b)

/// `LIB_TRY(auto x, f());` declares x from f()'s value or returns f()'s error from this function.
/// `LIB_TRY_VOID(f());` is the same for Result<void>.
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses.
#define LIB_TRY_INNER(result, declaration, expression) \
  auto result = (expression);                          \
  if (!result) {                                       \
    return std::move(result).error();                  \
  }                                                    \
  declaration = *std::move(result)
#define LIB_TRY(declaration, ...) \
  LIB_TRY_INNER(LIB_CONCAT(lib_result_, __LINE__), declaration, (__VA_ARGS__))
#define LIB_TRY_VOID(...)                        \
  do {                                           \
    auto lib_void_result = (__VA_ARGS__);        \
    if (!lib_void_result) {                      \
      return std::move(lib_void_result).error(); \
    }                                            \
  } while (false)
// NOLINTEND(bugprone-macro-parentheses)
