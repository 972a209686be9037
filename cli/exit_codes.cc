#include "cli/exit_codes.h"

#include <csignal>

namespace librarian::cli {

int exit_code(ErrorCode code, int signal_number) {
  switch (code) {
    case ErrorCode::internal:
      return kExitInternal;
    case ErrorCode::invalid_argument:
      return kExitUsage;
    case ErrorCode::bad_input:
    case ErrorCode::not_found:
      return kExitBadInput;
    case ErrorCode::conflict:
    case ErrorCode::already_exists:
      return kExitConflict;
    case ErrorCode::does_not_fit:
    case ErrorCode::no_space:
    case ErrorCode::io:
      return kExitDoesNotFit;
    case ErrorCode::unavailable:
    case ErrorCode::source_changed:
      return kExitRemote;
    case ErrorCode::corrupt:
      return kExitDamaged;
    case ErrorCode::cancelled:
      return signal_number == SIGINT ? kExitInterrupted : kExitTerminated;
  }
  return kExitInternal;
}

}  // namespace librarian::cli
