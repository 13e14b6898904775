"""TorchRec's own way of putting managed collision into a network (docs/ids.md). It trains, and TorchScript refuses it,
which is why training/step/slots.py takes another. Once this fails, it need not."""

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

SLOTS = 64


def test_it_trains_and_torchscript_refuses_it() -> None:
    device = torch.device("cpu")
    tables = [EmbeddingBagConfig(name="videos", embedding_dim=8, num_embeddings=SLOTS, feature_names=["item"])]
    bags = EmbeddingBagCollection(tables=tables, device=device)
    collision = MCHManagedCollisionModule(
        zch_size=SLOTS,
        device=device,
        input_hash_size=2**62,
        eviction_interval=2,
        eviction_policy=DistanceLFU_EvictionPolicy(),
    )
    managed = ManagedCollisionCollection(managed_collision_modules={"videos": collision}, embedding_configs=tables)
    module = ManagedCollisionEmbeddingBagCollection(bags, managed, return_remapped_features=False)
    ids = KeyedJaggedTensor(keys=["item"], values=torch.tensor([10**15, 3, 5]), lengths=torch.tensor([1, 1, 1]))
    for _ in range(3):
        module(ids)[0].values().sum().backward()
    gradient = bags.embedding_bags["videos"].weight.grad
    assert gradient is not None
    assert int((gradient.to_dense().abs().sum(1) > 0).sum()) >= 3  # an id each has a row of its own
    with pytest.raises(RuntimeError):
        torch.jit.script(module.eval())
