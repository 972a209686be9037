#pragma once
/// What the shell sees. Fixed: scripts depend on it.

#include "base/error.h"

namespace librarian::cli {

inline constexpr int kExitDone = 0;
inline constexpr int kExitInternal = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitBadInput = 3;
inline constexpr int kExitConflict = 4;
inline constexpr int kExitDoesNotFit = 5;
inline constexpr int kExitRemote = 6;
inline constexpr int kExitDamaged = 7;
inline constexpr int kExitInterrupted = 130;  ///< SIGINT
inline constexpr int kExitTerminated = 143;   ///< SIGTERM, SIGUSR1

/// @param signal_number  The signal that asked to stop, 0 if none did.
int exit_code(ErrorCode code, int signal_number);

}  // namespace librarian::cli
