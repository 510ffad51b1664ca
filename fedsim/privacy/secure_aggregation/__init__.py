"""Secure aggregation: the server learns the sum of the clients' vectors of integers and no vector, though some drop out.

The protocol of Bonawitz et al. 2017 (Practical Secure Aggregation, CCS 2017, ePrint 2017/281) on the sparse random graph of
Bell et al. 2020 (SecAgg+, CCS 2020, ePrint 2020/704), against an honest but curious server:

1. advertise: a client makes two X25519 key pairs, one to encrypt with and one to agree on masks, and sends the public halves.
2. share: the server says who its neighbours are. It splits the seed of its own mask and its private mask key into shares
   (Shamir), one of each for every neighbour and itself, and sends them sealed (AES-GCM) to each neighbour.
3. deliver: each client is given the shares that its neighbours sealed for it.
4. The masked vector is sent in the reply to training: vector + own mask + masks agreed with later neighbours - with earlier.
5. reveal: who answered shows, for each neighbour, EITHER the share of the seed (it answered) OR of the mask key (it did
   not), never both: both together would uncover that neighbour's vector. The server reconstructs and takes the masks off.

In a simulation all keys come from the run's seed, so that a run is reproducible and whoever knows the seed can undo every
mask; `secure` entropy is the operating system's. The sum is the same, exactly, under both.
"""

from fedsim.privacy.secure_aggregation.aggregator import Aggregator
from fedsim.privacy.secure_aggregation.keys import Entropy
from fedsim.privacy.secure_aggregation.party import Party

__all__ = ["Aggregator", "Entropy", "Party"]
