// The parts of the table of commands, one function per resource, and the parameters that several of them
// share. Only commands.cpp and these parts include this header.
#pragma once

#include <vector>

#include "client/command.h"

namespace portway {

std::vector<Command> instance_commands();
std::vector<Command> forward_commands();
std::vector<Command> connection_commands();
std::vector<Command> key_commands();
std::vector<Command> context_commands();
/// Profiles, events and the commands about this node or this program.
std::vector<Command> node_commands();
/// The nodes of a gateway.
std::vector<Command> fleet_commands();

inline const Parameter kInstance{.name = "INSTANCE", .help = "The instance's id.", .place = Place::kPath};
inline const Parameter kForward{.name = "FORWARD", .help = "The forward's id.", .place = Place::kPath};
inline const Parameter kInterval{.name = "--interval",
                                 .help = "Seconds between updates.",
                                 .kind = Kind::kCount,
                                 .value = "SECONDS",
                                 .fallback = "2"};
inline const Parameter kUpdates{
    .name = "--count",
    .help = "Stop after this many; without it, the command runs until interrupted.",
    .kind = Kind::kCount,
    .value = "N"};

/// Of listings that run_list() runs, with kUpdates.
inline const Parameter kWatch{.name = "--watch",
                              .help =
                                  "Print the list again whenever it changes, until interrupted; traffic "
                                  "alone is no change. On a terminal, in "
                                  "place of the one before.",
                              .kind = Kind::kFlag};

/// Of a command that a gateway has no answer of its own to.
inline const Parameter kAtNode{.name = "--node",
                               .help = "At a gateway, which node it is about (portway nodes); admin.",
                               .value = "NODE",
                               .place = Place::kNode};

inline const Parameter kIfMatch{.name = "--if-match",
                                .help =
                                    "Only if this is the present ETag, as --output wide, json and yaml show "
                                    "it; otherwise nothing is changed "
                                    "(precondition_failed).",
                                .value = "ETAG",
                                .place = Place::kHeader,
                                .field = "If-Match"};

inline const Parameter kMetadata{.name = "--metadata",
                                 .help = "A word of your own, by which lists can select; repeatable.",
                                 .kind = Kind::kEntry,
                                 .value = "KEY=VALUE",
                                 .place = Place::kBody,
                                 .field = "metadata",
                                 .repeatable = true};
inline const Parameter kRemoveMetadata{.name = "--remove-metadata",
                                       .help = "Remove this entry of the metadata; repeatable.",
                                       .value = "KEY",
                                       .place = Place::kBodyEntryNull,
                                       .field = "metadata",
                                       .repeatable = true};
inline const Parameter kSelector{.name = "--metadata",
                                 .help =
                                     "Only those whose metadata have these entries: KEY=VALUE or KEY, "
                                     "several with commas between them.",
                                 .value = "SELECTOR",
                                 .place = Place::kQuery,
                                 .field = "metadata"};

}  // namespace portway
