#include "actors/cluster_messages.h"

namespace fastserve::wire_messages {

void add_message_types(caf::actor_system_config& config) {
  config.add_message_type<NodeHello>("fs_hello")
      .add_message_type<NodeTick>("fs_tick")
      .add_message_type<Welcome>("fs_welcome")
      .add_message_type<Renew>("fs_renew")
      .add_message_type<Renewed>("fs_renewed")
      .add_message_type<AskPeer>("fs_ask_peer")
      .add_message_type<PeerAnswer>("fs_peer_answer")
      .add_message_type<PartOrder>("fs_part")
      .add_message_type<PartOpened>("fs_opened")
      .add_message_type<PartReady>("fs_ready")
      .add_message_type<PartFailed>("fs_failed")
      .add_message_type<PeerLost>("fs_peer_lost")
      .add_message_type<GiveUnit>("fs_give")
      .add_message_type<UnitDone>("fs_unit_done")
      .add_message_type<ApplyShard>("fs_apply")
      .add_message_type<SkipShard>("fs_skip")
      .add_message_type<CloseShard>("fs_close")
      .add_message_type<DisplacementHere>("fs_displaced")
      .add_message_type<ShardGathered>("fs_gathered")
      .add_message_type<ShardApplied>("fs_applied")
      .add_message_type<CopyShard>("fs_copy")
      .add_message_type<AddPeer>("fs_add_peer")
      .add_message_type<DropPeer>("fs_drop_peer")
      .add_message_type<HeldBy>("fs_held_by")
      .add_message_type<MakeCopy>("fs_make_copy")
      .add_message_type<CopyMade>("fs_copy_made")
      .add_message_type<EndPart>("fs_end_part")
      .add_message_type<Duties>("fs_duties")
      .add_message_type<DutiesReported>("fs_duties_reported")
      .add_message_type<Dismissed>("fs_dismissed")
      .add_message_type<AskPieces>("fs_ask_pieces")
      .add_message_type<PiecesHere>("fs_pieces_here")
      .add_message_type<SendPiece>("fs_send_piece")
      .add_message_type<PieceSent>("fs_piece_sent")
      .add_message_type<KeepPieces>("fs_keep_pieces")
      .add_message_type<KeepJobs>("fs_keep_jobs")
      .add_message_type<ShardCopied>("fs_shard_copied")
      .add_message_type<PieceKept>("fs_piece_kept")
      .add_message_type<NodeActor>("fs_node_actor")
      .add_message_type<PartActor>("fs_part_actor")
      .add_message_type<ConductorActor>("fs_conductor_actor");
}

}  // namespace fastserve::wire_messages
